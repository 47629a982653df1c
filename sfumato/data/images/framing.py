"""Which window of an image is trained: the middle, one at random, or one around a face.

Sizes are (width, height) in pixels throughout.
"""

from __future__ import annotations

import random
import re
from pathlib import PurePath
from typing import NamedTuple

from PIL import Image

from sfumato.data.images.buckets import Fit, Size, centre_crop
from sfumato.data.images.resizing import resize

_FACE = re.compile(r"_(\d+)_(\d+)_(0*[1-9]\d*)_(0*[1-9]\d*)$")


class Face(NamedTuple):
    """Where a face lies in an image, in pixels: its centre and its size."""

    x: int
    y: int
    width: int
    height: int


class Framing(NamedTuple):
    """How a window is cut out of an image.

    Attributes:
        resized: the size the image is resized to first.
        corner: (left, top) of the window in the resized image.
        size: of the window.
    """

    resized: Size
    corner: tuple[int, int]
    size: Size

    def cut(self, image: Image.Image, interpolation: str | None = None) -> Image.Image:
        """Return the window; an image of other proportions (a mask's) is stretched."""
        left, top = self.corner
        box = (left, top, left + self.size[0], top + self.size[1])
        return resize(image, self.resized, interpolation).crop(box)

    def offset(self, flipped: bool) -> tuple[int, int]:
        """Return the window's (top, left), as seen in the mirrored image if it is `flipped`."""
        left, top = self.corner
        return top, self.resized[0] - left - self.size[0] if flipped else left


def centred(fit: Fit) -> Framing:
    """Return the window in the middle."""
    return Framing(fit.resized, centre_crop(fit.resized, fit.bucket), fit.bucket)


def at_random(resized: Size, window: Size, rng: random.Random) -> Framing:
    """Return a window anywhere in the resized image, every place as likely as the others."""
    left, top = (
        rng.randint(0, room) if room else 0 for room in (resized[0] - window[0], resized[1] - window[1])
    )
    return Framing(resized, (left, top), window)


def around(
    face: Face,
    size: Size,
    window: Size,
    crop_range: tuple[float, float],
    rng: random.Random,
    *,
    wanders: bool = False,
) -> Framing:
    """Return a window with the face in its middle, as far as the image's edges let it.

    Args:
        size: of the image.
        crop_range: the window's short side, in sizes of the face; drawn between the two, but such that the
            image covers the window and is not enlarged without need.
        wanders: let the face lie anywhere, more often near the middle.
    """
    covering = max(window[0] / size[0], window[1] / size[1])
    scales = [min(window) / (max(face.width, face.height) * crop) for crop in crop_range]
    scale = rng.uniform(*sorted(max(min(scale, 1.0), covering) for scale in scales))
    resized = _scaled(size[0], scale, window[0]), _scaled(size[1], scale, window[1])
    # Where the range leaves a choice, faces lie a little off the middle too.
    freedom = scale * max(face.width, face.height) / 20 if crop_range[0] != crop_range[1] else 0.0
    left, top = (
        _start(centre * scale, length, side, freedom, wanders, rng)
        for centre, length, side in zip((face.x, face.y), resized, window, strict=True)
    )
    return Framing(resized, (left, top), window)


def face_of(path: str) -> Face | None:
    """Return the face that a file name tells of: `name_<centre x>_<centre y>_<width>_<height>.png`."""
    found = _FACE.search(PurePath(path).stem)
    return Face(*map(int, found.groups())) if found else None


def _scaled(side: int, scale: float, least: int) -> int:
    return max(int(side * scale + 0.5), least)


def _start(centre: float, length: int, side: int, freedom: float, wanders: bool, rng: random.Random) -> int:
    if wanders:
        freedom = max(length - centre, centre)
        centre += rng.triangular(-freedom, freedom)
    elif freedom:
        centre += rng.uniform(-freedom, freedom)
    return max(0, min(round(centre - side / 2), length - side))
