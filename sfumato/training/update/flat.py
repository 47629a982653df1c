"""Many small tensors side by side in one large one, so that one kernel treats them all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

LARGE = 1 << 20
"""Elements from which on a tensor is worth a kernel of its own."""

_ALIGNMENT_BYTES = 64
"""Matrix products are slower, and on some devices differ in the last bit, where rows begin anywhere."""


def alike(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters by dtype and device, in order."""
    found: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        found[parameter.dtype, parameter.device].append(parameter)
    return list(found.values())


def room_for(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return zeros, 1-d, in which `views` finds a place for each parameter; all have one dtype and device."""
    first = parameters[0]
    return torch.zeros(sum(map(_width, parameters)), dtype=first.dtype, device=first.device)


def views(room: Tensor, parameters: Sequence[nn.Parameter]) -> Iterator[Tensor]:
    """Yield the part of `room` that belongs to each parameter, in the parameter's shape."""
    pieces = room.split([_width(parameter) for parameter in parameters])
    for piece, parameter in zip(pieces, parameters, strict=True):
        yield piece[: parameter.numel()].view(parameter.shape)


def align(parameters: Iterable[nn.Parameter]) -> None:
    """Give memory of its own to each parameter that does not begin as kernels like it, as in a mapped file.

    So a step computes the same whether weights lie by themselves, in one large tensor or in a block that
    travels.
    """
    for parameter in parameters:
        if parameter.data_ptr() % _ALIGNMENT_BYTES:
            parameter.data = parameter.data.clone()


class FlatParameter:
    """Parameters that an optimizer knows as one; they live on as views of it.

    This suits optimizers whose update of an element depends on nothing but that element's history: they
    compute the same, with one kernel instead of one for each tensor.

    Attributes:
        whole: (N,), what the optimizer is given.
        pieces: the parameters as the model knows them.
    """

    def __init__(self, pieces: Sequence[nn.Parameter]) -> None:
        self.pieces = pieces
        room = room_for(pieces)
        for piece, place in zip(pieces, views(room, pieces), strict=True):
            piece.data = place.copy_(piece.data)
        self.whole = nn.Parameter(room)
        self._addresses = [piece.data_ptr() for piece in pieces]

    def share_gradient(self) -> None:
        """Let the pieces' gradients be views of that of the whole, which must be there and stay in place."""
        assert self.whole.grad is not None
        for piece, place in zip(self.pieces, views(self.whole.grad, self.pieces), strict=True):
            piece.grad = place

    def check(self) -> None:
        """Raise ValueError if somebody gave a piece memory of its own: it would no longer be trained."""
        if [piece.data_ptr() for piece in self.pieces] != self._addresses:
            raise ValueError("a parameter was moved while it was trained; change parameters in place")


def flatten(parameters: Iterable[nn.Parameter]) -> tuple[list[FlatParameter], list[nn.Parameter]]:
    """Join the small ones of one group's parameters; return what was joined, and the parameters to train."""
    parameters = list(parameters)
    small = [parameter for parameter in parameters if parameter.numel() < LARGE]
    joined = [FlatParameter(pieces) for pieces in alike(small)]
    large = [parameter for parameter in parameters if parameter.numel() >= LARGE]
    return joined, [*(flat.whole for flat in joined), *large]


def _width(parameter: nn.Parameter) -> int:
    step = _ALIGNMENT_BYTES // parameter.itemsize
    return -(-parameter.numel() // step) * step
