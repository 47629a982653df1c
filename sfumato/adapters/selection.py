"""Which layers are adapted, and how large the adapter of each is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sfumato.errors import UserError
from sfumato.models.family import DENOISER, AdapterTarget


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
