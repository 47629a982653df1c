"""One image of many: each with what its mask leaves out in red, to be looked through at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from sfumato.checkpoints.atomic import atomic_file
from sfumato.data.images.images import BrokenImageError, decode
from sfumato.data.images.masks import decode_mask
from sfumato.data.sources.complaints import Complaints

MOST = 120
"""Images on a sheet; of more, some are taken evenly."""

_COLUMNS, _CELL, _MARGIN, _LINE = 6, 224, 8, 16
_PAPER, _INK, _HIDDEN = (250, 250, 248), (40, 40, 40), (214, 40, 40)
_VEIL = 0.6
"""How much of the red is seen where nothing counts."""


def write_sheet(path: Path, pairs: Sequence[tuple[Path, Path]], complaints: Complaints) -> int:
    """Write a sheet of images and their masks; return how many are on it.

    Args:
        path: a JPEG to write.
        pairs: image and mask of each; what cannot be read gets an empty place, and is complained of.
    """
    chosen = [pairs[at * len(pairs) // min(MOST, len(pairs))] for at in range(min(MOST, len(pairs)))]
    rows = -(-len(chosen) // _COLUMNS)
    width, height = _CELL + _MARGIN, _CELL + _LINE + _MARGIN
    sheet = Image.new("RGB", (min(_COLUMNS, len(chosen)) * width + _MARGIN, rows * height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (image, mask) in enumerate(chosen):
        left, top = _MARGIN + number % _COLUMNS * width, _MARGIN + number // _COLUMNS * height
        if veiled := _veiled(image, mask, complaints):
            sheet.paste(veiled, (left + (_CELL - veiled.width) // 2, top + (_CELL - veiled.height) // 2))
        draw.text((left, top + _CELL + 2), _shortened(image.name), fill=_INK)
    with atomic_file(path) as file:
        sheet.save(file, "JPEG", quality=88)
    return len(chosen)


def _veiled(image: Path, mask: Path, complaints: Complaints) -> Image.Image | None:
    try:
        picture, counted = decode(image), decode_mask(str(mask))
    except BrokenImageError as error:
        complaints.warn(f"{mask} cannot be shown over {image}: {error}; make it again")
        return None
    picture.thumbnail((_CELL, _CELL))
    counted = counted.resize(picture.size)
    red = Image.new("RGB", picture.size, _HIDDEN)
    return Image.composite(red, picture, counted.point([int((255 - level) * _VEIL) for level in range(256)]))


def _shortened(name: str) -> str:
    """Return a name that fits below its image, in characters that the font has."""
    plain = name.encode("ascii", "replace").decode()
    return plain if len(plain) <= 34 else f"{plain[:20]}...{plain[-11:]}"
