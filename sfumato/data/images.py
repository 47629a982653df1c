"""Picture files: their size from the header alone, their pixels resized and cropped.

EXIF orientation is applied to sizes and pixels alike, so a portrait photograph is trained upright. PNG files
are taken as they are: cameras do not write them, and their orientation may lie behind all their pixels.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sfumato.data.buckets import Fit, Size, centre_crop

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"})
"""File name suffixes of pictures, in lower case; upper case is accepted too."""

_EXIF_ORIENTATION = 0x0112
# What Pillow raises for files that are cut short or damaged, apart from OSError.
_DECODING_ERRORS = (SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


class BrokenPictureError(Exception):
    """A picture file that cannot be read; the message says why, without the path."""


def read_size(path: str | Path) -> Size:
    """Return the upright (width, height) from a file's header, without decoding its pixels.

    Raises:
        BrokenPictureError: the header is damaged, empty, or of no known format.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(32)
            if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR":
                # Ten times faster than Pillow's way, and most data sets are PNG.
                if len(start) < 24:
                    raise BrokenPictureError("the file is cut short")
                width, height = struct.unpack(">II", start[16:24])
                return width, height
            if not start:
                raise BrokenPictureError("the file is empty")
            file.seek(0)
            with Image.open(file) as image:
                return _upright(image.size, _orientation(image))
    except UnidentifiedImageError as error:
        raise BrokenPictureError("not a picture, or of a format that Pillow cannot read here") from error
    except (OSError, *_DECODING_ERRORS) as error:
        raise BrokenPictureError(str(error)) from error


def decode(path: str | Path) -> Image.Image:
    """Return the upright picture in RGB.

    Raises:
        BrokenPictureError: the file is damaged.
    """
    try:
        with Image.open(path) as image:
            if image.format != "PNG" and _orientation(image) > 1:
                image = ImageOps.exif_transpose(image)
            return image.convert("RGB")
    except (OSError, *_DECODING_ERRORS) as error:
        raise BrokenPictureError(str(error)) from error


def load(path: str | Path, fit: Fit) -> Tensor:
    """Return a picture as trained: (3, H, W) in [-1, 1], resized to cover its bucket, centre-cropped."""
    return to_tensor(crop(resize(decode(path), fit.resized), fit.bucket))


def resize(image: Image.Image, size: Size) -> Image.Image:
    """Resize by area averaging where both sides shrink, else by Lanczos, as sd-scripts does."""
    if size == image.size:
        return image
    if size[0] < image.width and size[1] < image.height:
        return Image.fromarray(_average(np.asarray(image), size))
    return image.resize(size, Image.Resampling.LANCZOS)


def crop(image: Image.Image, size: Size) -> Image.Image:
    """Cut the window of that size out of the middle."""
    left, top = centre_crop(image.size, size)
    return image.crop((left, top, left + size[0], top + size[1]))


def to_tensor(image: Image.Image) -> Tensor:
    """Return (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.contiguous().float().div_(127.5).sub_(1)


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation without Pillow's `getexif`, which decodes the whole of some files."""
    data = image.info.get("exif")
    if not data:
        return 1
    exif = Image.Exif()
    exif.load(data)
    return exif.get(_EXIF_ORIENTATION, 1)


def _upright(size: Size, orientation: int) -> Size:
    return (size[1], size[0]) if orientation >= 5 else size


def _average(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Average (H, W, C) over the exact area of each new pixel; Pillow's BOX counts whole pixels only."""
    rows = _average_rows(pixels.astype(np.float32), size[1])
    columns = _average_rows(np.ascontiguousarray(rows.swapaxes(0, 1)), size[0])
    return np.clip(np.rint(columns.swapaxes(0, 1)), 0, 255).astype(np.uint8)


def _average_rows(pixels: NDArray[np.float32], num_rows: int) -> NDArray[np.float32]:
    first, weights = _area_weights(pixels.shape[0], num_rows)
    total = np.zeros((num_rows, *pixels.shape[1:]), np.float32)
    for tap, weight in enumerate(weights.T):
        rows = np.minimum(first + tap, pixels.shape[0] - 1)
        total += pixels[rows] * weight[:, None, None]
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
