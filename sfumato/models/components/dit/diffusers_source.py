"""Where the tensors of a transformer of ours come from in diffusers' format.

diffusers splits fused projections, and puts the halves of some modulations the other way round: published
files have (shift, scale), diffusers (scale, shift).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sfumato.checkpoints.lazy import LazyTensor


@dataclass(frozen=True)
class DiffusersSource:
    """Where one of our tensors comes from: other tensors, joined along their first dimension."""

    names: tuple[str, ...]
    swaps_halves: bool = False

    def join(self, get: Callable[[str], Tensor]) -> Tensor:
        """Make our tensor of theirs."""
        parts = [get(name) for name in self.names]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return _with_halves_swapped(whole) if self.swaps_halves else whole

    def shape(self, shape_of: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of our tensor."""
        shapes = [shape_of(name) for name in self.names]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def lazy(self, open_: Callable[[str], LazyTensor]) -> LazyTensor:
        """Return our tensor, made of theirs when it is written."""
        whole = LazyTensor.joined([open_(name) for name in self.names])
        return whole.changed(_with_halves_swapped) if self.swaps_halves else whole

    def split(self, whole: Tensor, hidden: int) -> dict[str, Tensor]:
        """Make their tensors of ours: `hidden` rows for each but the last, which has the rest."""
        if self.swaps_halves:
            whole = _with_halves_swapped(whole)
        widths = [hidden] * (len(self.names) - 1)
        return dict(zip(self.names, whole.split([*widths, whole.shape[0] - sum(widths)]), strict=True))


Sources = Mapping[str, DiffusersSource]
"""What each of our tensors is made of, by its published name."""


def to_diffusers(tensors: Mapping[str, LazyTensor], sources: Sources, hidden: int) -> dict[str, LazyTensor]:
    """Return a published file's tensors under diffusers' names, made when they are written.

    Args:
        hidden: as `DiffusersSource.split` has it.
    """
    return {
        name: tensors[key].changed(partial(_part, source, hidden, name))
        for key, source in sources.items()
        for name in source.names
    }


def layers(
    table: Mapping[str, str], ours: str = "", theirs: str = "", *, swaps_halves: bool = False
) -> Iterator[tuple[str, DiffusersSource]]:
    """Yield the weight and the bias of each layer of a table: their names by ours, blanks between several.

    Args:
        ours, theirs: what is before the names of the table.
    """
    for name, others in table.items():
        for leaf in ("weight", "bias"):
            names = tuple(f"{theirs}{part}.{leaf}" for part in others.split())
            yield f"{ours}{name}.{leaf}", DiffusersSource(names, swaps_halves)


def count_blocks(names: Collection[str], kind: str) -> int:
    """Return how many blocks of a kind there are: `double_blocks.7.lin.weight` is of the eighth.

    Args:
        names: of tensors or layers; their dots may be underscores.
        kind: a regular expression.
    """
    found = (re.match(rf"(?:{kind})[._](\d+)[._]", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _part(source: DiffusersSource, hidden: int, name: str, whole: Tensor) -> Tensor:
    return source.split(whole, hidden)[name]


def _with_halves_swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])
