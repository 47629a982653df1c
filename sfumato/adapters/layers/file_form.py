"""How the layers of one kind of adapter look in files, and what their tensors tell without a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from sfumato.adapters.layers.layer import AdapterLayer, Dropouts
from sfumato.adapters.layers.told_shape import ToldShape
from sfumato.models.interface.targets import AdapterTarget

Tensors = Mapping[str, Tensor]
"""A layer's tensors, by their names within the layer."""
Shapes = Mapping[str, tuple[int, ...]]
"""The same without their numbers."""

Formula = Callable[[Tensors, Tensor, float], Tensor]
"""Takes a layer's tensors, one of its parameters in float32 and a strength; returns the parameter's change.

Tensors of one number lie on the CPU, and the change may have any shape that holds the parameter's numbers in
order. At strength 0 nothing changes.
"""


@dataclass(frozen=True)
class Term:
    """One formula by which tensors change a parameter; the changes by all of a layer's tensors add up.

    Attributes:
        parameter: `weight` or `bias`; a norm's scale counts as its weight.
        marks: names of tensors; the formula applies where one of them is.
        takes: names of the others that it makes use of.
    """

    parameter: str
    marks: tuple[str, ...]
    change: Formula
    takes: tuple[str, ...] = ()


Loader = Callable[[AdapterTarget, Tensors, Dropouts], AdapterLayer]
"""Makes the untrained adapter of a layer in the form that a file's tensors have."""


def tell_no_shape(shapes: Shapes) -> ToldShape | None:
    """Say nothing of the weight's shape."""


def tell_no_factors(tensors: Tensors) -> tuple[Tensor, Tensor] | None:
    """Say that a change is no product of two matrices."""


@dataclass(frozen=True)
class FileForm:
    """What tells a kind in files, what must hold there, and what can be read off its tensors.

    Where a name is compared up to its first dot, `.` and what follows is left out of the attribute.

    Attributes:
        marks: names of tensors; a layer that has one of them is of this kind, and can be loaded.
        load: makes a layer of what a file holds; None where the formulas of all its tensors do.
        tensors: a pattern that fits the names of all tensors but alpha.
        together: groups of tensors of which a layer has all or none.
        choices: groups of tensors of which a layer has one at least.
        halves: pairs of tensors (rank, in, ...) and (out, rank, ...).
        ranks: names up to the dot of tensors whose first side is the rank; a layer without them is whole.
        blocks: names up to the dot of tensors (number of blocks, size of a block, ...).
        is_scaled: alpha / rank scales the change, so that an alpha that is missing is the rank.
        is_off_at_0: an alpha of 0 switches a layer off.
        needs_weight: the change depends on the weight that it is made for.
        terms: the formulas by which its tensors act beside those of other kinds, if they can.
        shape: returns what the tensors tell of the weight's shape, if they do.
        factors: returns up (m, r), scaled, and down (r, n), if the change is their product.
    """

    marks: tuple[str, ...]
    load: Loader | None = None
    tensors: str = r"(?!)"
    together: tuple[tuple[str, ...], ...] = ()
    choices: tuple[tuple[str, ...], ...] = ()
    halves: tuple[tuple[str, str], ...] = ()
    ranks: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    is_scaled: bool = False
    is_off_at_0: bool = True
    needs_weight: bool = False
    terms: tuple[Term, ...] = ()
    shape: Callable[[Shapes], ToldShape | None] = tell_no_shape
    factors: Callable[[Tensors], tuple[Tensor, Tensor] | None] = tell_no_factors

    def can_load(self, names: Collection[str]) -> bool:
        """Return whether a layer with tensors of these names is of this kind, in our own naming."""
        return any(mark in names or any(name.startswith(f"{mark}.") for name in names) for mark in self.marks)

    def explains(self, names: Collection[str]) -> bool:
        """Return whether the kind knows all tensors of a layer, in our own naming."""
        return all(name == "alpha" or re.fullmatch(self.tensors, name) for name in names)

    def is_told_by(self, names: Iterable[str]) -> bool:
        """Return whether a layer with tensors of these names is of this kind."""
        return any(name.partition(".")[0] in self._beginnings for name in names)

    def is_in(self, keys: Iterable[str]) -> bool:
        """Return whether one of a file's keys tells of a layer of this kind."""
        told = re.compile(rf"\.({'|'.join(map(re.escape, self._beginnings))})(\.|$)")
        return any(map(told.search, keys))

    def missing(self, names: Collection[str]) -> str | None:
        """Return a tensor that a layer with tensors of these names needs and lacks."""
        groups = [group for group in (*self.halves, *self.together) if any(name in names for name in group)]
        if any(re.match(self.tensors, name) for name in names):
            groups += [choice[:1] for choice in self.choices if not any(name in names for name in choice)]
        return next((name for group in groups for name in group if name not in names), None)

    @property
    def _beginnings(self) -> set[str]:
        return {mark.partition(".")[0] for mark in self.marks}
