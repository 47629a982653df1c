"""DyLoRA: a LoRA whose first ranks are useful without the others (Valipour et al., arXiv:2210.07558).

Every forward pass in training draws how many ranks count, in whole units, and trains only the last unit of
them. `sfumato extract-dylora` cuts the file into LoRAs of each size.

As in sd-scripts the ranks beyond the drawn ones still act, untrained, and the change is scaled by the root of
how many times more ranks there are than drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Draw = Callable[[int], int]
"""Draws a number below the given one."""


def draw_below(count: int) -> int:
    """Draw from torch's CPU generator, which a recomputed forward pass finds as it was the first time."""
    return int(torch.randint(count, ()).item())


@dataclass(frozen=True)
class NestedRanks:
    """Which ranks of a LoRA a forward pass trains.

    Attributes:
        unit: how many ranks are trained at once; divides the rank.
    """

    unit: int
    draw: Draw = draw_below

    def __call__(self, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return both weights, trainable in the drawn unit alone, and how much more they count.

        Args:
            down: (rank, in, ...).
            up: (out, rank, ...).
        """
        rank = down.shape[0]
        start = self.draw(rank) // self.unit * self.unit
        stop = start + self.unit
        return _only(down, 0, start, stop), _only(up, 1, start, stop), math.sqrt(rank / stop)


def _only(weight: Tensor, dim: int, start: int, stop: int) -> Tensor:
    """Return the weight, with gradients for the indices of `dim` from `start` to `stop` alone."""
    before, own, after = weight.tensor_split((start, stop), dim)
    return torch.cat((before.detach(), own, after.detach()), dim)
