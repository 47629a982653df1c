"""Which dtype weights are kept in and which one matrices are multiplied in."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from sfumato.config.precision import PrecisionConfig
from sfumato.errors import UserError

COMPUTE = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """One run's policy.

    Attributes:
        compute: dtype of matrix products under `autocast`.
        trained: dtype of the weights that are trained.
        fp8: store frozen denoiser weights as float8_e4m3fn.
        fp8_encoders: store those of text encoders that run in every step so, too.
    """

    device: torch.device
    compute: torch.dtype
    trained: torch.dtype
    fp8: bool = False
    fp8_encoders: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the models run."""
        if self.compute is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)

    def frozen(
        self, part: str, eight_bit: Collection[str], kept_float32: Collection[str] = ()
    ) -> torch.dtype:
        """Return the storage dtype of a frozen part.

        Args:
            eight_bit: parts that are stored in 8 bits if that is asked for at all.
            kept_float32: parts that are stored in full precision whatever is asked for.
        """
        if part in kept_float32:
            return torch.float32
        return torch.float8_e4m3fn if self.fp8 and part in eight_bit else self.compute

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients must be scaled to survive float16."""
        return self.compute is torch.float16


def precision_for(config: PrecisionConfig, device: torch.device) -> Precision:
    """Return the policy, or raise UserError where the device cannot follow it."""
    compute = COMPUTE[config.mixed_precision]
    if compute is torch.float16 and device.type == "cpu":
        raise UserError("--mixed_precision is fp16, which a CPU cannot train in; use bf16 or no")
    if config.fp8_base and compute is torch.float32:
        raise UserError("--fp8_base needs --mixed_precision bf16 or fp16; it is no")
    trained = torch.float32
    if config.full_bf16:
        trained = torch.bfloat16
    if config.full_fp16:
        trained = torch.float16
    return Precision(device, compute, trained, config.fp8_base, config.fp8_base and not config.fp8_base_unet)
