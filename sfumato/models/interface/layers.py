"""How the arguments of sd-scripts' network modules speak of a family's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BlockList:
    """How many blocks a model's list has; those outside are counted but belong to no way.

    Attributes:
        before, after: what lies outside the ways, at the two ends.
    """

    down: int
    middle: int
    up: int
    before: int = 0
    after: int = 0

    def __len__(self) -> int:
        return self.before + self.down + self.middle + self.up + self.after


@dataclass(frozen=True)
class Layers:
    """How arguments speak of a family's layers.

    Attributes:
        kinds: arguments that set the rank of one kind of layer, with that kind.
        listed: arguments that set several ranks at once, with the kinds in order.
        blocks: arguments that select blocks by index, with the kind of block.
        block_list: the blocks of a U-Net, or None for other models.
        attention: kinds of layers that make up attention.
        are_fused: some layers hold several projections, which can be adapted apart.
        text_encoders: positions of the text encoders that are adapted by default.
        on_request: arguments that call up further text encoders, with their positions.
        without_effect: arguments that are taken although they change nothing.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    listed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    blocks: Mapping[str, str] = field(default_factory=dict)
    block_list: BlockList | None = None
    attention: tuple[str, ...] = ()
    are_fused: bool = False
    text_encoders: tuple[int, ...] = (0,)
    on_request: Mapping[str, int] = field(default_factory=dict)
    without_effect: tuple[str, ...] = ()
