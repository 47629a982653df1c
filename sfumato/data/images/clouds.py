"""Clouds: smooth noise over an image, of large and small waves."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from sfumato.data.images.buckets import Size
from sfumato.data.images.shapes import Field

_WAVES = (4, 8, 16)
"""Waves along the longer side; each kind is half as high as the one before it."""


def field(size: Size, rng: random.Random) -> Field:
    """Return noise of mean 0 for an image of that size (width, height)."""
    noise = np.random.default_rng(rng.getrandbits(64))
    layers = (_layer(size, num, noise) / (num / _WAVES[0]) for num in _WAVES)
    return np.sum(list(layers), axis=0, dtype=np.float32)


def _layer(size: Size, num_waves: int, noise: np.random.Generator) -> Field:
    """Return numbers on a grid, smoothly enlarged."""
    width, height = (max(2, round(num_waves * side / max(size))) for side in size)
    grid = noise.standard_normal((height, width), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))
