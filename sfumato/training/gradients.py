"""Gradients in flat buffers: summed over processes, measured, clipped and made finite in one kernel each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class FlatGradients:
    """Own the gradients of `parameters` as views of one buffer per dtype and device."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        alike: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            alike[parameter.dtype, parameter.device].append(parameter)
        self._buffers = [_flatten(group) for group in alike.values()]

    def zero(self) -> None:
        """Forget the last step's gradients, in place: the views must stay."""
        for buffer in self._buffers:
            buffer.zero_()

    def sum_over(self, all_reduce: Callable[[Tensor], None]) -> None:
        """Replace every gradient by its sum over all processes."""
        for buffer in self._buffers:
            all_reduce(buffer)

    def divide_(self, divisor: Tensor) -> None:
        """Divide every gradient by a 0-d tensor."""
        for buffer in self._buffers:
            buffer.div_(divisor)

    def norm(self) -> Tensor:
        """Return the L2 norm of all gradients together, 0-d float32, without waiting for the device."""
        norms = [torch.linalg.vector_norm(buffer, dtype=torch.float32) for buffer in self._buffers]
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))

    def tame_(self, norm: Tensor, max_norm: float) -> None:
        """Clip to `max_norm` (0: no clipping); if `norm` is not finite, make all gradients zero."""
        factor = torch.ones_like(norm)
        if max_norm > 0:
            factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        factor = torch.where(torch.isfinite(norm), factor, 0.0)
        for buffer in self._buffers:
            # 0 * nan is nan; where the norm is finite there is none.
            buffer.mul_(factor.to(buffer.dtype)).nan_to_num_(0.0, 0.0, 0.0)


def _flatten(parameters: list[nn.Parameter]) -> Tensor:
    first = parameters[0]
    buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
    for parameter, piece in zip(parameters, buffer.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)
    return buffer
