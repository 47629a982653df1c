"""Rectangles, ellipses and polygons around a place in an image, as fields: the larger, the nearer.

Every level of a field is the edge of one shape, so that a share of the image chooses its size. What would lie
outside the image is cut off.
"""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from sfumato.data.images.buckets import Size

Field = NDArray[np.floating]
"""A number for each pixel, (H, W)."""

_FEWEST_CORNERS, _MOST_CORNERS = 4, 9


def rectangle(size: Size, rng: random.Random) -> Field:
    """Return rectangles around a random place, up to four times as wide as high or the other way."""
    x, y = _stretched(size, rng)
    return -np.maximum(np.abs(x), np.abs(y))


def ellipse(size: Size, rng: random.Random) -> Field:
    """Return ellipses around a random place, of the same proportions."""
    x, y = _stretched(size, rng)
    return -(x * x + y * y)


def polygon(size: Size, rng: random.Random) -> Field:
    """Return polygons of 4 to 9 corners around a random place, which all of their inside can be seen from."""
    x, y = _offsets(size, rng)
    angles, radii = _corners(rng)
    corners = radii * np.cos(angles), radii * np.sin(angles)
    edges = _edges(*corners)
    turn = np.arctan2(y, x) - np.float32(angles[0])
    edge = np.searchsorted(angles - angles[0], turn % np.float32(2 * math.pi), side="right") - 1
    return -(edges[0][edge] * x + edges[1][edge] * y)


def _offsets(size: Size, rng: random.Random) -> tuple[Field, Field]:
    """Return how far each column, (1, W), and each row, (H, 1), is from a random place in the image."""
    width, height = size
    x, y = (np.arange(side, dtype=np.float32) - np.float32(rng.uniform(0, side)) for side in (width, height))
    return x[None], y[:, None]


def _stretched(size: Size, rng: random.Random) -> tuple[Field, Field]:
    x, y = _offsets(size, rng)
    stretch = np.float32(2 ** rng.uniform(-1, 1))
    return x * stretch, y / stretch


def _corners(rng: random.Random) -> tuple[Field, Field]:
    """Return the angles of corners in order, less than half a turn apart, and their distances."""
    count = rng.randint(_FEWEST_CORNERS, _MOST_CORNERS)
    angles = [2 * math.pi * (number + rng.uniform(0, 0.8)) / count for number in range(count)]
    return np.array(angles), np.array([rng.uniform(0.4, 1.0) for _ in angles])


def _edges(x: Field, y: Field) -> tuple[Field, Field]:
    """Return (a, b) of each edge from a corner to the next, such that a x + b y is 1 on it and 0 inside."""
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    area = x * next_y - next_x * y
    return ((next_y - y) / area).astype(np.float32), ((x - next_x) / area).astype(np.float32)
