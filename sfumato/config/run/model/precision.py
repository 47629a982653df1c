"""Which dtypes a run computes and stores in."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.rule import excludes, given, implies, needs


@dataclass(frozen=True)
class PrecisionConfig:
    """Dtypes."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Format of the computation; trained weights stay float32. bf16 where the device has it."""

    full_fp16: bool = False
    """Keep weights and gradients in fp16 too. Needs `--mixed_precision fp16`."""

    full_bf16: bool = False
    """Keep weights and gradients in bf16 too. Needs `--mixed_precision bf16`."""

    fp8_base: bool = False
    """Store the frozen base model, and text encoders that run in every step, in 8-bit floats, for half the
    memory. Needs mixed precision."""

    fp8_base_unet: bool = False
    """Store only the denoiser in 8-bit floats and leave the text encoders alone. Needs mixed precision."""


RULES = (
    excludes(["full_fp16"], ["full_bf16"], "there is one dtype"),
    needs(["full_fp16"], given("mixed_precision", "fp16")),
    needs(["full_bf16"], given("mixed_precision", "bf16")),
    needs(["fp8_base", "fp8_base_unet"], given("mixed_precision", "bf16", "fp16")),
    implies("fp8_base_unet", {"fp8_base": True}),
)
"""What these options mean to others."""
