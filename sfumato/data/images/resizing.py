"""Images resized: by area averaging where they shrink, by Lanczos where they grow, or by a chosen filter.

Averaging is our own and exact: Pillow's BOX counts whole pixels only, and OpenCV, whose INTER_AREA is meant,
would be a large dependency for one filter. Everything else is Pillow's.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from sfumato.data.images.buckets import Size

FILTERS: dict[str, Resampling | None] = {
    "lanczos": Resampling.LANCZOS,
    "nearest": Resampling.NEAREST,
    "bilinear": Resampling.BILINEAR,
    "linear": Resampling.BILINEAR,
    "bicubic": Resampling.BICUBIC,
    "cubic": Resampling.BICUBIC,
    "box": Resampling.BOX,
    "area": None,
}
"""Pillow's filter for each value of `resize_interpolation`; None where it is our own."""


def resize(image: Image.Image, size: Size, interpolation: str | None = None) -> Image.Image:
    """Resize to (width, height).

    Args:
        image: RGB, RGBA or L.
        interpolation: a key of `FILTERS`; None averages where both sides shrink and takes Lanczos elsewhere.
    """
    if size == image.size:
        return image
    if interpolation is None:
        shrinks = size[0] < image.width and size[1] < image.height
        interpolation = "area" if shrinks else "lanczos"
    resampling = FILTERS[interpolation]
    if resampling is None:
        return Image.fromarray(_average(np.asarray(image), size))
    return image.resize(size, resampling)


def _average(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Average (H, W) or (H, W, C) over the exact area of each new pixel."""
    rows = _averaged(pixels, size[1], axis=0)
    return np.rint(_averaged(rows, size[0], axis=1)).astype(np.uint8)


def _averaged(pixels: NDArray[np.uint8 | np.float32], num_new: int, axis: int) -> NDArray[np.float32]:
    """Average along one axis, which has `num_new` entries afterwards."""
    num_old = pixels.shape[axis]
    first, weights = _area_weights(num_old, num_new)
    shape = [num_new if at == axis else 1 for at in range(pixels.ndim)]
    total = pixels.take(first, axis) * weights[:, 0].reshape(shape)
    for tap, weight in enumerate(weights.T[1:], 1):
        if weight.any():  # the last one counts nowhere if whole pixels are averaged
            total += pixels.take(np.minimum(first + tap, num_old - 1), axis) * weight.reshape(shape)
    return total


@lru_cache(maxsize=128)
def _area_weights(num_old: int, num_new: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each new row's first old row, (new,), and the shares of the rows from there, (new, taps)."""
    edges = np.arange(num_new + 1) * (num_old / num_new)
    first = np.floor(edges[:-1] + 1e-9).astype(np.int64)
    num_taps = int(np.ceil(num_old / num_new)) + 1
    left = first[:, None] + np.arange(num_taps)
    overlap = np.minimum(left + 1, edges[1:, None]) - np.maximum(left, edges[:-1, None])
    return first, (np.clip(overlap, 0, None) * (num_new / num_old)).astype(np.float32)
