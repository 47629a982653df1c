"""A layer's name in our adapter files and its names in diffusers' files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exchanged:
    """One layer under both names.

    Attributes:
        own: what our adapter files call it, without the adapter kind's prefix.
        theirs: dotted names in diffusers' files, in the order of the rows; several where the layer is fused.
        ratio: rows of the last of several, in multiples of the layer's columns. Each other has as many rows
            as the layer has columns.
    """

    own: str
    theirs: tuple[str, ...]
    ratio: int = 1

    def widths(self, columns: int) -> tuple[int, ...]:
        """Return the rows of each of several layers, as published models have them."""
        return (*[columns] * (len(self.theirs) - 1), self.ratio * columns)
