"""Image files: their size from the header alone, and their pixels.

EXIF orientation is applied to sizes and pixels alike, so a portrait photograph is trained upright. PNG files
are taken as they are: cameras do not write them, and their orientation may lie behind all their pixels.
"""

from __future__ import annotations

import importlib.util
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sfumato import installing
from sfumato.data.images.buckets import Size
from sfumato.data.images.regular_files import open_regular
from sfumato.errors import UserError, guest_code

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"})
"""File name suffixes of images, in lower case; upper case is accepted too."""

_ENDINGS = tuple(SUFFIXES)

MAX_PIXELS = 2**29 // 3
"""Pixels of the largest image that is read: half a gigabyte of RGB. Pillow, too, stops there."""

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation; 1 is upright."""
_TOO_LARGE = f"it has more than {MAX_PIXELS // 10**6} million pixels, the most that are read; make it smaller"
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
# From here on, a JPEG is decoded at a fraction of its size where that suffices: gigabytes less.
_LARGE_JPEG = 50_000_000


class BrokenImageError(Exception):
    """An image file that cannot be read; the message says why, without the path."""


_NAMED = (BrokenImageError, UnidentifiedImageError, Image.DecompressionBombError, OSError)
"""Faults that have messages of their own."""


_SHOWN = re.compile("([1-9][0-9]{0,9})x([1-9][0-9]{0,9})( animated)?")


class ImageHeader(NamedTuple):
    """What is known of an image without its pixels: upright (width, height); whether it has more frames."""

    size: Size
    is_animated: bool = False

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}{' animated' if self.is_animated else ''}"

    @classmethod
    @lru_cache(4096)  # many images have the same size
    def parse(cls, text: str) -> ImageHeader | None:
        """Return the header that `str` made this text of; None where it is a text of something else."""
        found = _SHOWN.fullmatch(text)
        return cls((int(found[1]), int(found[2])), found[3] is not None) if found else None


def is_image(name: str) -> bool:
    """Whether a file of that name is an image; `.png` alone is a hidden file without a suffix."""
    return name.lower().endswith(_ENDINGS) and name.rpartition(".")[0].strip(".") != ""


def stem(path: str) -> str:
    """Return an image's path or name without its suffix; `splitext` takes six times as long for it."""
    return path.rpartition(".")[0]


def read_size(path: str | Path) -> Size:
    """Return the upright (width, height) from a file's header; errors as for `read_header`."""
    return read_header(path).size


def read_header(path: str | Path) -> ImageHeader:
    """Return size and kind from a file's header, without decoding its pixels.

    Raises:
        BrokenImageError: the header is damaged or of no known format, or the image too large to read.
    """
    with _naming_faults(), open_regular(path) as file:
        start = file.read(256)
        if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR":
            return _png_header(start)
        if not start:
            raise BrokenImageError("the file is empty")
        _register_format(start)
        file.seek(0)
        with Image.open(file) as image:
            return ImageHeader(_upright(image.size, _orientation(image)), _is_animated(image))


def decode(
    path: str | Path, *, alpha: bool = False, at_least: Size | None = None, large: int = _LARGE_JPEG
) -> Image.Image:
    """Return the upright image in RGB; of several frames the first.

    Args:
        alpha: return RGBA; otherwise transparency is dropped, and the colours stored below it show.
        at_least: a JPEG of `large` pixels or more may come at a half, a quarter or an eighth of its size, but
            not smaller than this (width, height).

    Raises:
        BrokenImageError: the file is damaged, or the image too large to read.
    """
    with _naming_faults(), open_regular(path) as file:
        _register_format(file.read(12))
        file.seek(0)
        with Image.open(file) as image:
            orientation = _orientation(image)
            if at_least and image.width * image.height >= large:
                image.draft(None, _upright(at_least, orientation))
            turn = None if image.format == "PNG" else _TURNS.get(orientation)
            return _in_colour(image if turn is None else image.transpose(turn), alpha)


def to_tensor(image: Image.Image) -> Tensor:
    """Return (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.contiguous().float().div_(127.5).sub_(1)


@contextmanager
def _naming_faults() -> Iterator[None]:
    """Turn whatever decoders raise into BrokenImageError: each raises what it likes about a damaged file."""
    try:
        with guest_code("it cannot be decoded", passes=lambda error: isinstance(error, _NAMED)):
            yield
    except UserError as error:
        raise BrokenImageError(str(error)) from error
    except UnidentifiedImageError as error:
        raise BrokenImageError("not an image, or of a format that Pillow cannot read here") from error
    except Image.DecompressionBombError as error:
        raise BrokenImageError(_TOO_LARGE) from error
    except OSError as error:
        raise BrokenImageError(error.strerror or str(error)) from error


def _png_header(start: bytes) -> ImageHeader:
    """Read the first 256 bytes of a PNG: ten times faster than Pillow's way, and most data sets are PNG."""
    if len(start) < 24:
        raise BrokenImageError("the file is cut short")
    width, height = struct.unpack(">II", start[16:24])
    if not width * height:
        raise BrokenImageError("it has no pixels")
    if width * height > MAX_PIXELS:
        raise BrokenImageError(_TOO_LARGE)
    return ImageHeader((width, height), b"acTL" in start)


def _register_format(start: bytes) -> None:
    """Let Pillow read the format of a file that begins so, where that takes a plugin."""
    if start.startswith(_JXL_STARTS):
        if importlib.util.find_spec("pillow_jxl") is None:
            raise BrokenImageError(f"JPEG XL needs a plugin: run {installing.command_for('pillow_jxl')}")
        importlib.import_module("pillow_jxl")


def _is_animated(image: Image.Image) -> bool:
    # Cameras put previews and depth maps behind a photograph and call the file a JPEG: MPO.
    return image.format != "MPO" and getattr(image, "is_animated", False)


def _in_colour(image: Image.Image, alpha: bool) -> Image.Image:
    """Return an image of any mode in RGB, or in RGBA with `alpha`."""
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts 16 bits off at 255: nearly everything white.
        values = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGBA" if alpha else "RGB")


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation without Pillow's `getexif`, which decodes the whole of some files."""
    data = image.info.get("exif")
    if not data:
        return 1
    exif = Image.Exif()
    try:
        with _naming_faults():
            exif.load(data)
            found = exif.get(_EXIF_ORIENTATION)
    except BrokenImageError:  # the pixels may be sound
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _upright(size: Size, orientation: int) -> Size:
    return (size[1], size[0]) if orientation >= 5 else size
