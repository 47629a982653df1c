"""Which dtype weights are kept in and which one matrices are multiplied in."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.nn.precision import check_autocast, check_compute, check_storage
from sfumato.training.core.scaling import HalfScaler, Scaler

LEAST_HALF_EPS = 1e-5
"""Below this, Adam's eps no longer keeps float16 weights from jumping."""

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

    def scaler(self) -> Scaler | None:
        """Return what makes gradients survive float16; None where they need no help."""
        if self.compute is not torch.float16:
            return None
        return HalfScaler() if self.trained is torch.float16 else torch.amp.GradScaler(self.device.type)

    def check_optimizer(self, kind: type[torch.optim.Optimizer], arguments: Mapping[str, Any]) -> None:
        """Raise UserError for an optimizer of torch's own that would divide by zero in float16.

        It keeps squares of gradients in the format of the weights, where they vanish, and its eps, too.
        """
        if self.trained is not torch.float16 or not kind.__module__.startswith("torch.optim"):
            return
        own = inspect.signature(kind).parameters.get("eps")
        eps = arguments.get("eps", own.default if own is not None else None)
        if eps is not None and eps < LEAST_HALF_EPS:
            raise UserError(
                f"--full_fp16 with {kind.__name__}: eps {eps:g} is too small for float16; "
                "give --optimizer_args eps=1e-4, or --optimizer_type AdamW8bit"
            )


def for_device(run: Run, device: torch.device) -> tuple[Run, list[str]]:
    """Return the run with bf16 where a file asks a processor for fp16, and the line that says so.

    Who writes a command line can mend it, and is refused by `precision_for`; a front-end's file does not know
    the machine.
    """
    asked = run[PrecisionConfig]
    formats = {"mixed_precision", *(("full_fp16",) if asked.full_fp16 else ())}
    if device.type != "cpu" or asked.mixed_precision != "fp16" or not formats <= run.from_file:
        return run, []
    instead = replace(
        asked, mixed_precision="bf16", full_fp16=False, full_bf16=asked.full_bf16 or asked.full_fp16
    )
    line = "--mixed_precision is fp16, which a CPU cannot train in; bf16 is used instead"
    return run.with_sections(instead), [line]


def precision_for(config: PrecisionConfig, device: torch.device) -> Precision:
    """Return the policy, or raise UserError where the device cannot follow it."""
    compute = COMPUTE[config.mixed_precision]
    if compute is torch.float16 and device.type == "cpu":
        raise UserError("--mixed_precision is fp16, which a CPU cannot train in; use bf16 or no")
    check_compute(compute, device, "--mixed_precision")
    if compute is not torch.float32 and device.type != "cuda":
        check_autocast(compute, device, "--mixed_precision")
    if config.fp8_base:
        check_storage(device, "--fp8_base")
    if config.fp8_base and compute is torch.float32:
        raise UserError("--fp8_base needs --mixed_precision bf16 or fp16; it is no")
    trained = torch.float32
    if config.full_bf16:
        trained = torch.bfloat16
    if config.full_fp16:
        trained = torch.float16
    return Precision(device, compute, trained, config.fp8_base, config.fp8_base and not config.fp8_base_unet)
