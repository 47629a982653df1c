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

from sfumato.adapters.layers import lora
from sfumato.adapters.layers.kind import AdapterKind
from sfumato.adapters.layers.layer import AdapterLayer, Dropouts
from sfumato.adapters.layers.lora import Lora, as_lora
from sfumato.errors import UserError
from sfumato.models.interface.targets import AdapterTarget

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


@dataclass(frozen=True)
class DyloraArguments:
    """How a DyLoRA is made and trained.

    Attributes:
        rank, alpha: as in `Lora`.
        unit: as in `NestedRanks`.
    """

    rank: int = 4
    alpha: float | None = None
    unit: int = 1


def _make(target: AdapterTarget, arguments: DyloraArguments, dropouts: Dropouts) -> Lora:
    return Lora(target, arguments.rank, arguments.alpha, dropouts)


def _nest(layer: AdapterLayer, arguments: DyloraArguments) -> None:
    own, unit = as_lora(layer), arguments.unit
    if own.rank % unit:
        raise UserError(f"--network_args unit={unit} does not divide the rank {own.rank} of {own.name}")
    own.nested = NestedRanks(unit)


KIND = AdapterKind(
    name="dylora",
    title="DyLoRA",
    description="a DyLoRA",
    prefix=lora.PREFIX,
    files=lora.KIND.files,
    arguments=DyloraArguments,
    make=_make,
    refine=_nest,
    has_plus=True,
    is_variant=True,
)
