"""Gradients in flat buffers: summed over processes, measured, clipped and made finite in one kernel each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from sfumato.training.update.flat import alike, room_for, views


class FlatGradients:
    """Own the gradients of `parameters` as views of one buffer per dtype and device."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._buffers = [_flatten(group) for group in alike(parameters)]

    def zero(self) -> None:
        """Forget the last step's gradients, in place: the views must stay."""
        for buffer in self._buffers:
            buffer.zero_()

    def sum_over(self, all_reduce: Callable[[Tensor], None]) -> None:
        """Replace every gradient by its sum over all processes."""
        for buffer in self._buffers:
            all_reduce(buffer)

    def norm(self) -> Tensor:
        """Return the L2 norm of all gradients together, 0-d float32, without waiting for the device."""
        norms = [torch.linalg.vector_norm(buffer, dtype=torch.float32) for buffer in self._buffers]
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))

    def tame_(self, norm: Tensor, max_norm: float) -> None:
        """Clip to `max_norm` (0: no clipping); if `norm` is not finite, make all gradients zero."""
        tame_(self._buffers, norm, max_norm)


def tame_(gradients: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Clip gradients of this `norm` to `max_norm` (0: no clipping); if it is not finite, make them zero."""
    factor = torch.ones_like(norm)
    if max_norm > 0:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    factor = torch.where(torch.isfinite(norm), factor, 0.0)
    # Where looking makes nobody wait, passes over all gradients that would change nothing are left out.
    seen = factor.item() if factor.device.type == "cpu" else None
    if seen == 1:
        return
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.dtype))
        if not seen:
            gradient.nan_to_num_(0.0, 0.0, 0.0)  # 0 * nan is nan; where the norm is finite there is none


def _flatten(parameters: Sequence[nn.Parameter]) -> Tensor:
    buffer = room_for(parameters)
    for parameter, place in zip(parameters, views(buffer, parameters), strict=True):
        parameter.grad = place
    return buffer
