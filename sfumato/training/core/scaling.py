"""Loss scaling for trained weights that are float16 themselves (--full_fp16).

Small gradients vanish in float16, so the loss is multiplied by a scale that falls when gradients overflow and
rises when they have not for a while (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2). torch's
GradScaler does the same, but refuses float16 gradients because dividing them by the scale rounds them;
whoever keeps everything in float16 has chosen that.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Scaler(Protocol):
    """What an update asks of loss scaling: torch's GradScaler, or ours."""

    def scale(self, outputs: Tensor) -> Tensor:
        """Return the loss to start the backward pass from."""
        ...

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale and note whether they are finite."""
        ...

    def step(self, optimizer: torch.optim.Optimizer) -> Any:
        """Step, unless gradients overflowed."""
        ...

    def update(self) -> None:
        """Choose the scale of the next step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what an earlier run returned."""
        ...


class HalfScaler:
    """A `Scaler` for float16 gradients.

    Args:
        scale: to begin with.
        interval: steps without overflow after which the scale is doubled.
    """

    def __init__(self, scale: float = 2.0**16, interval: int = 2000) -> None:
        self._scale = scale
        self._interval = interval
        self._num_good = 0
        self._is_finite = True

    def scale(self, outputs: Tensor) -> Tensor:
        """Return the loss times the scale, in float32, where it fits."""
        return outputs.float() * self._scale

    @torch.no_grad()
    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale and note whether they are finite."""
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        torch._foreach_mul_(gradients, 1 / self._scale)  # type: ignore[attr-defined]
        norms = torch._foreach_norm(gradients, float("inf"))  # type: ignore[attr-defined]
        self._is_finite = bool(torch.stack(norms).isfinite().all())

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step, unless gradients overflowed."""
        if self._is_finite:
            optimizer.step()

    def update(self) -> None:
        """Halve the scale after an overflow; double it after a long time without one."""
        self._num_good = self._num_good + 1 if self._is_finite else 0
        if not self._is_finite:
            self._scale /= 2
        elif self._num_good == self._interval:
            self._scale, self._num_good = self._scale * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the steps since it changed."""
        return {"scale": self._scale, "num_good": self._num_good}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what an earlier run returned."""
        self._scale, self._num_good = state_dict["scale"], state_dict["num_good"]
