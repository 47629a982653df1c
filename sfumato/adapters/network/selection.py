"""Which layers are adapted, and how large the adapter of each is."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Size:
    """How large one layer's adapter is.

    Attributes:
        rank: 0 leaves the layer alone.
        alpha: the change is scaled by alpha / rank; None or 0 means alpha = rank.
    """

    rank: int
    alpha: float | None = None


class Rule(Protocol):
    """Decides layer by layer."""

    def size_of(self, target: AdapterTarget) -> Size | None:
        """Return how large the adapter of a layer is, or None where the layer is left alone."""
        ...

    def check(self, targets: Iterable[AdapterTarget]) -> None:
        """Raise UserError if a block is asked for that the model does not have."""
        ...


@dataclass(frozen=True)
class RankRule:
    """Ranks by kinds of layers and of blocks, each kind of block counted from 0; a `Rule`. Rank 0 is none.

    Attributes:
        rank: of layers that no other field speaks of.
        alpha: of all layers.
        by_kind: ranks of kinds of the denoiser's layers, those included that are adapted only when asked for.
        blocks: for some kinds of the denoiser's blocks, the indices that are adapted; None is all.
        options: for the same kinds of blocks, the option that says so, for messages.
    """

    rank: int
    alpha: float | None = None
    by_kind: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, frozenset[int] | None] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    def size_of(self, target: AdapterTarget) -> Size | None:
        """Return the size for one layer; all layers of a text encoder have the common one."""
        rank = self._rank_of(target)
        return Size(rank, self.alpha) if rank else None

    def check(self, targets: Iterable[AdapterTarget]) -> None:
        """Raise UserError if a block is asked for that the model does not have."""
        counts: dict[str, int] = {}
        own = [target for target in targets if target.part == DENOISER]
        for kind, index in (target.block for target in own if target.block is not None):
            counts[kind] = max(counts.get(kind, 0), index + 1)
        for kind, indices in self.blocks.items():
            last = max(indices or (0,))
            if kind in counts and last >= counts[kind]:
                raise UserError(
                    f"--network_args {self.options.get(kind, kind)} asks for block {last}, "
                    f"but the model has 0 to {counts[kind] - 1}"
                )

    def _rank_of(self, target: AdapterTarget) -> int:
        if target.part != DENOISER:
            return self.rank
        if target.block is not None:
            kind, index = target.block
            allowed = self.blocks.get(kind)
            if allowed is not None and index not in allowed:
                return 0
        return self.by_kind.get(target.kind, self.rank if target.is_default else 0)


@dataclass(frozen=True)
class PatternRule:
    """Ranks of layers by name, before another rule is asked; a `Rule`.

    Attributes:
        ranks: the first pattern found in `lora_` and the layer's name counts; 0 leaves the layer alone.
        alpha: of layers whose name is matched.
        otherwise: decides on the rest. Layers that are adapted only when asked for must be asked for there.
    """

    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alpha: float | None
    otherwise: Rule

    def size_of(self, target: AdapterTarget) -> Size | None:
        """Return the size for one layer."""
        size = self.otherwise.size_of(target)
        if size is None and not target.is_default:
            return None
        found = first_match(self.ranks, f"lora_{target.name}")
        if found is None:
            return size
        return Size(self.ranks[found][1], self.alpha) if self.ranks[found][1] else None

    def check(self, targets: Iterable[AdapterTarget]) -> None:
        """Raise UserError if a pattern fits no layer."""
        targets = list(targets)
        require_matches("network_reg_dims", self.ranks, [f"lora_{target.name}" for target in targets])
        self.otherwise.check(targets)


def first_match(patterns: Sequence[tuple[re.Pattern[str], object]], name: str) -> int | None:
    """Return the place of the first pattern that is found in a name."""
    return next((i for i, (pattern, _) in enumerate(patterns) if pattern.search(name)), None)


def require_matches(
    key: str, patterns: Sequence[tuple[re.Pattern[str], object]], names: Sequence[str]
) -> None:
    """Raise UserError if one of an argument's patterns is found in no name."""
    for pattern, _ in patterns:
        if not any(pattern.search(name) for name in names):
            raise UserError(
                f"--network_args {key}: {pattern.pattern} fits no layer; names look like {names[0]}"
            )


@dataclass(frozen=True)
class ScopeRule:
    """The denoiser's attention, and more of it where asked for, all in one size; a `Rule`.

    Attributes:
        size: its rank counts blocks, into which a layer's outputs are cut.
        attention: kinds of layers that are always adapted.
        has_all_linear: adapt all layers of transformers.
        has_convolutions: adapt what is adapted only when asked for.
        is_split: fused projections are cut into blocks one by one.
    """

    size: Size
    attention: frozenset[str]
    has_all_linear: bool = False
    has_convolutions: bool = False
    is_split: bool = False

    def size_of(self, target: AdapterTarget) -> Size | None:
        """Return the size for one layer."""
        if target.part != DENOISER:
            return None
        is_asked_for = self.has_all_linear if target.is_default else self.has_convolutions
        return self.size if target.kind in self.attention or is_asked_for else None

    def check(self, targets: Iterable[AdapterTarget]) -> None:
        """Raise UserError if the outputs of a layer cannot be cut evenly; warn of a loose limit."""
        if self.size.alpha == 0:
            raise UserError("--network_alpha 0 lets OFT learn nothing; it is a limit here: give 1e-2 to 1e-4")
        if (self.size.alpha or 0) >= 1:
            logger.warning(
                "--network_alpha %g hardly limits OFT; 1e-2 to 1e-4 is recommended", self.size.alpha
            )
        widths = {width: t.name for t in targets if self.size_of(t) for width in self._widths(t)}
        for width, name in widths.items():
            if width % self.size.rank:
                all_widths = math.gcd(*widths)
                fits = max(n for n in range(1, self.size.rank + 1) if all_widths % n == 0)
                raise UserError(
                    f"--network_dim {self.size.rank} does not divide the {width} outputs of {name}; "
                    f"OFT cuts them into that many blocks: use {fits}"
                )

    def _widths(self, target: AdapterTarget) -> tuple[int, ...]:
        whole = (target.module.get_parameter("weight").shape[0],)
        return (target.splits or whole) if self.is_split else whole
