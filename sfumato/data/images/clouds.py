"""Clouds: smooth noise over an image, of large and small waves."""

from __future__ import annotations

import random
from functools import reduce

import numpy as np
from PIL import Image

from sfumato.data.images.buckets import Size
from sfumato.data.images.shapes import Field

_WAVES = (4, 8, 16)
"""Waves along the longer side; each kind is half as high as the one before it."""


def field(size: Size, rng: random.Random) -> Field:
    """Return noise of mean 0 for an image of that size (width, height)."""
    noise = np.random.default_rng(rng.getrandbits(64))
    return reduce(np.add, (_layer(size, num, noise) * np.float32(_WAVES[0] / num) for num in _WAVES))


def _layer(size: Size, num_waves: int, noise: np.random.Generator) -> Field:
    """Return numbers on a grid, smoothly enlarged."""
    width, height = (max(2, round(num_waves * side / max(size))) for side in size)
    grid = noise.standard_normal((height, width), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))
