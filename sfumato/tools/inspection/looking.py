"""Look at the pixels of every image: is it whole, what does it resemble, what does its thumbnail show."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sfumato import log
from sfumato.data.images import images, masks
from sfumato.data.images.images import BrokenImageError
from sfumato.data.images.masks import MaskSource
from sfumato.tools.inspection import flaws
from sfumato.tools.inspection.duplicates import difference_hash

THUMBNAIL = 256
"""Longest side of a thumbnail in pixels."""

_STRIPES = ((190, 24, 60), (255, 255, 255))
_STRIPE = 6


@dataclass(frozen=True)
class Seen:
    """What the pixels of one image told.

    Attributes:
        likeness: its difference hash; None if they cannot be decoded.
        fault: why they cannot; "" if they can.
        bars: share of it that bars of one colour take at opposite borders.
        sharpness: how much its levels change from pixel to pixel.
    """

    likeness: int | None
    fault: str = ""
    bars: float = 0.0
    sharpness: float = 0.0


def look_at(paths: Sequence[str]) -> list[Seen]:
    """Decode every image, on all cores: decoding lets other threads run."""
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        log.progress(total=len(paths), unit="image", title="looking at images") as bar,
    ):
        found = []
        for seen in pool.map(_look_at, paths):
            found.append(seen)
            bar.update()
    return found


def thumbnail(path: str) -> str:
    """Return the whole image, small, as a data URI."""
    return _uri(_small(path), "JPEG", quality=82)


def mask_thumbnail(path: str, source: MaskSource) -> str:
    """Return stripes over what an image's mask leaves out, as a data URI; "" where it is damaged."""
    try:
        alone = images.decode(path, alpha=True).getchannel("A")
        mask = masks.decode_mask(source.path) if source.path else alone
    except BrokenImageError:
        return ""
    mask.thumbnail((THUMBNAIL, THUMBNAIL))
    veil = _stripes(mask.size)
    veil.putalpha(mask.point([(255 - counted) * 3 // 4 for counted in range(256)]))
    return _uri(veil, "PNG")


def _stripes(size: tuple[int, int]) -> Image.Image:
    """Return slanting stripes, which no photograph has in these colours."""
    rows, columns = np.indices((size[1], size[0]))
    which = (rows + columns) // _STRIPE % len(_STRIPES)
    return Image.fromarray(np.array(_STRIPES, dtype=np.uint8)[which])


def _look_at(path: str) -> Seen:
    try:
        small = _small(path)
    except BrokenImageError as error:
        return Seen(None, str(error))
    return Seen(difference_hash(small), bars=flaws.bars(small), sharpness=flaws.sharpness(small))


def _small(path: str) -> Image.Image:
    image = images.decode(path, at_least=(THUMBNAIL, THUMBNAIL), large=0)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    text = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"
