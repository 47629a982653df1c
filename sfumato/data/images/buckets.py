"""Buckets: the few image sizes of nearly equal area that a data set is trained at.

Each image goes to the bucket of the nearest aspect ratio, is resized to cover it, and is cropped at the
centre. Sizes are (width, height) in pixels throughout.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

Size = tuple[int, int]


class Fit(NamedTuple):
    """How one image meets its bucket.

    Attributes:
        bucket: the size trained at.
        resized: the size it is resized to before cropping; covers `bucket`.
        ratio_error: the bucket's width/height minus the image's.
    """

    bucket: Size
    resized: Size
    ratio_error: float


@dataclass(frozen=True)
class Buckets:
    """The rule by which a data set's images are sorted into buckets.

    Attributes:
        resolution: the size whose area no bucket exceeds.
        min_size, max_size: limits of a bucket's sides; multiples of `step`.
        step: what sides are multiples of.
        no_upscale: never enlarge; then the limits do not count and buckets follow from the images.
        enabled: False makes `resolution` the only bucket.
    """

    resolution: Size
    min_size: int = 256
    max_size: int = 1024
    step: int = 64
    no_upscale: bool = False
    enabled: bool = True

    @property
    def shortest_side(self) -> int:
        """The shortest side of an image that has a bucket: one that is not enlarged must fill a step."""
        return self.step if self.enabled and self.no_upscale else 1

    def fit(self, size: Size) -> Fit:
        """Return the bucket of an image of that size, and the size to resize it to.

        Args:
            size: no side below `shortest_side`.
        """
        if not self.enabled:
            return covering(self.resolution, size)
        if self.no_upscale:
            return _shrinking(self.resolution, self.step, size)
        return _choice(self.resolution, self.min_size, self.max_size, self.step).fit(size)


@dataclass(frozen=True)
class BucketChoice:
    """Given buckets, of which an image goes to the one of the nearest aspect ratio.

    Attributes:
        sizes: all of them.
        ratios: their widths by their heights, in order.
        by_ratio: the first bucket of each ratio.
    """

    sizes: frozenset[Size]
    ratios: list[float]
    by_ratio: list[Size]

    @classmethod
    def of(cls, sizes: Sequence[Size]) -> BucketChoice:
        """Return the choice among one or more buckets, which are sorted."""
        by_ratio = {width / height: (width, height) for width, height in reversed(sizes)}
        ratios = sorted(by_ratio)
        return cls(frozenset(sizes), ratios, [by_ratio[ratio] for ratio in ratios])

    def fit(self, size: Size) -> Fit:
        """Return the bucket of an image of that size; one of its very size is taken first."""
        if size in self.sizes:
            return Fit(size, size, 0.0)
        ratio = size[0] / size[1]
        at = bisect(self.ratios, ratio)
        near = self.by_ratio[max(at - 1, 0) : at + 1]
        return covering(min(near, key=lambda bucket: (abs(bucket[0] / bucket[1] - ratio), bucket)), size)


def round_limits(min_size: int, max_size: int, step: int) -> tuple[int, int]:
    """Return `min_size` lowered and `max_size` raised to multiples of `step`; at least one step."""
    return max(min_size // step, 1) * step, math.ceil(max_size / step) * step


@lru_cache(maxsize=64)
def bucket_sizes(resolution: Size, min_size: int, max_size: int, step: int) -> tuple[Size, ...]:
    """Return every bucket of at most the area of `resolution`, sorted."""
    area = resolution[0] * resolution[1]
    side = math.isqrt(area) // step * step
    sizes = {(side, side)}
    for width in range(min_size, max_size + 1, step):
        height = min(max_size, area // width // step * step)
        if height >= min_size:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


@lru_cache(maxsize=64)
def _choice(resolution: Size, min_size: int, max_size: int, step: int) -> BucketChoice:
    return BucketChoice.of(bucket_sizes(resolution, min_size, max_size, step))


def covering(bucket: Size, size: Size) -> Fit:
    """Return how an image of that size is resized to cover the bucket, keeping its shape."""
    ratio, target = size[0] / size[1], bucket[0] / bucket[1]
    scale = bucket[1] / size[1] if ratio > target else bucket[0] / size[0]
    resized = (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
    return Fit(bucket, resized, target - ratio)


def centre_crop(resized: Size, bucket: Size) -> tuple[int, int]:
    """Return (left, top) of the window of size `bucket` in the middle of a resized image."""
    return (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2


def crop_box(bucket: Size, size: Size) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) as models that are told about cropping expect it.

    It is the image's own shape laid *inside* the bucket, not the window that is cut out; SDXL's published
    fine-tunes were trained with these numbers.
    """
    width, height = bucket
    if width / height > size[0] / size[1]:
        inner = (height * (size[0] / size[1]), float(height))
    else:
        inner = (float(width), width / (size[0] / size[1]))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]


def crop_offset(bucket: Size, size: Size, flipped: bool) -> tuple[int, int]:
    """Return the (top, left) of `crop_box`, seen in the mirrored image if it is `flipped`."""
    left, top, right, _ = crop_box(bucket, size)
    return int(top), int(bucket[0] - right if flipped else left)


def _shrinking(resolution: Size, step: int, size: Size) -> Fit:
    area, ratio = resolution[0] * resolution[1], size[0] / size[1]
    resized = size
    if size[0] * size[1] > area:
        width = math.sqrt(area * ratio)
        resized = _nearest_ratio(_down(width, step), _down(area / width, step), step, ratio)
        if min(resized) < step:  # the area is too small for the shape
            resized = (step, int(step / ratio + 0.5)) if ratio < 1 else (int(step * ratio + 0.5), step)
    bucket = (resized[0] - resized[0] % step, resized[1] - resized[1] % step)
    return Fit(bucket, resized, bucket[0] / bucket[1] - ratio)


def _nearest_ratio(width: int, height: int, step: int, ratio: float) -> Size:
    """Keep whichever rounded side lets the other one, rounded too, come nearer to `ratio`."""
    by_width = width / _down(width / ratio, step)
    by_height = _down(height * ratio, step) / height
    if abs(by_width - ratio) < abs(by_height - ratio):
        return width, int(width / ratio + 0.5)
    return int(height * ratio + 0.5), height


def _down(side: float, step: int) -> int:
    rounded = int(side + 0.5)
    return max(step, rounded - rounded % step)
