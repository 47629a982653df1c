"""Tables of positions: where an image lies in one, and tables that are scaled to the images of the data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn

Corner = tuple[int, int]
"""Row and column in a table of positions."""

PATCH = 2
"""Latents on each side of a patch, which has one position."""

_DOWNSCALE = 8
_MARGIN = 1.5
_SPAN = 16.0
_BASE = 10_000.0

logger = logging.getLogger(__name__)


def random_corner(
    size: tuple[int, int], side: int, rate: float, rng: torch.Generator | None
) -> Corner | None:
    """Draw a place for a batch with that probability, so that all positions are learned.

    Args:
        size: (height, width) of the latents.
        side: patches on each side of the table.
        rate: probability, 0 to 1; nothing is drawn for 0.
        rng: on the processor; None draws nothing.

    Returns:
        None for the middle of the table.
    """
    if rng is None or not rate or torch.rand((), generator=rng).item() >= rate:
        return None
    ends = [max(side - length // PATCH, 0) + 1 for length in size]
    top, left = (int(torch.randint(end, (), generator=rng)) for end in ends)
    return top, left


def sides_of(resolutions: Iterable[tuple[int, int]]) -> list[int]:
    """Return the sides, in patches, of square images as large as images of (width, height) pixels."""
    return sorted({round(sqrt(width * height)) // _DOWNSCALE // PATCH for width, height in resolutions})


class ScaledPositions(nn.Module):
    """A table of positions for each size of images, so that all of them span the same positions.

    Which one an image takes depends on its size alone: the one of the nearest area, or one of its own where
    it is too long for that.

    Args:
        sides: patches on each side of square images of the sizes that there are.
        width: of a position.

    Attributes:
        limits: the largest area of each table, in patches, and the side that it is made for; ascending.
    """

    def __init__(self, sides: Sequence[int], width: int) -> None:
        super().__init__()
        self._width = width
        between = [(first**2 + second**2) // 2 for first, second in pairwise(sides)]
        self.limits = [*zip([*between, int((_MARGIN * sides[-1]) ** 2)], sides, strict=True)]
        for side in sides:
            self._add(side, torch.device("cpu"))

    def forward(self, rows: int, columns: int) -> Tensor:
        """Return the table, (side, side, C) float32, for an image of that many patches."""
        side = next((side for most, side in self.limits if rows * columns <= most), self.limits[-1][1])
        table = self.get_buffer(f"of_{side}")
        longest = max(rows, columns)
        if longest <= len(table):
            return table
        if f"of_{longest}" not in self._buffers:
            logger.warning("an image of %d x %d patches gets a table of positions of its own", rows, columns)
            self._add(longest, table.device)
        return self.get_buffer(f"of_{longest}")

    def _add(self, side: int, device: torch.device) -> None:
        self.register_buffer(f"of_{side}", scaled_table(side, self._width).to(device), persistent=False)


def scaled_table(side: int, width: int) -> Tensor:
    """Return positions for images of `side` patches and some margin, (1.5 side, 1.5 side, width) float32.

    The image spans 16 units, whatever its size. Each position is the sines and cosines of its column, then
    those of its row (Dosovitskiy et al. 2021, appendix D.4).
    """
    length = int(_MARGIN * side)
    places = (torch.arange(length, dtype=torch.float64) - (length - side) / 2) * (_SPAN / side)
    powers = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angles = places[:, None] * _BASE**-powers
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = waves[None].expand(length, -1, -1)
    return torch.cat([columns, columns.transpose(0, 1)], dim=2).float()
