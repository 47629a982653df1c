"""What is wrong with an image as such, read off its thumbnail: bars at its borders, and how sharp it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_EVEN = 3.0
"""Deviation of levels up to which a row is of one colour; JPEG leaves some."""
_LEAST_BARS = 0.03
"""Share of an image from which on bars are none that a frame or a shadow could be."""


def bars(image: Image.Image) -> float:
    """Return which share of an image bars of one colour take at two opposite borders; 0 without bars."""
    levels = np.asarray(image.convert("L"), np.float32)
    shares = [_bars(levels), _bars(levels.T)]
    return max(shares) if max(shares) >= _LEAST_BARS else 0.0


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian of an image's levels (Pech-Pacheco 2000): small is blurred."""
    levels = np.asarray(image.convert("L"), np.float32)
    if min(levels.shape) < 3:
        return 0.0
    middle = levels[1:-1, 1:-1]
    around = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:]
    return float((around - 4 * middle).var())


def _bars(levels: NDArray[np.float32]) -> float:
    """Return the share of rows in bars at the top and the bottom, which are as even and of one colour."""
    is_even = levels.std(axis=1) <= _EVEN
    if is_even.all():
        return 0.0
    top, bottom = int(np.argmin(is_even)), int(np.argmin(is_even[::-1]))
    if not top or not bottom:
        return 0.0
    colours = levels[:top].mean(), levels[len(levels) - bottom :].mean()
    is_one = abs(colours[0] - colours[1]) <= _EVEN
    return (top + bottom) / len(levels) if is_one else 0.0
