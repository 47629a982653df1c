"""The images that a run starts from, and what of them is repainted: files that are gone through in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.images import images
from sfumato.data.images.images import BrokenImageError
from sfumato.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_UNIT = 32
"""Pixels that sides are rounded down to multiples of where an image tells the size."""


@dataclass(frozen=True)
class StartFiles:
    """Images and masks of a run; either may be empty.

    Attributes:
        has_own_size: whether each image tells the size of what is made of it.
    """

    images: Sequence[Path] = ()
    masks: Sequence[Path] = ()
    has_own_size: bool = True

    def image(self, number: int) -> Path | None:
        """Return the image that the picture of that number starts from."""
        return self.images[number % len(self.images)] if self.images else None

    def mask(self, number: int) -> Path | None:
        """Return the mask for the picture of that number."""
        return self.masks[number % len(self.masks)] if self.masks else None


NO_FILES = StartFiles()
"""Of a run that starts from noise."""


def files_named(path: str | None, option: str) -> list[Path]:
    """Return a file, or the images in a folder in the order of their names.

    Raises:
        UserError: there is no such file, or no image in the folder.
    """
    if path is None:
        return []
    place = Path(path)
    if not place.is_dir():
        if not place.exists():
            raise UserError(f"--{option} is {path}, which does not exist; check the path")
        return [place]
    found = sorted(file for file in place.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not found:
        raise UserError(f"--{option} is {path}, a folder without images ({' '.join(_SUFFIXES)})")
    return found


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of what is made of an image: its own, rounded down to multiples of 32.

    Raises:
        UserError: the file is no image, or too small.
    """
    try:
        width, height = images.read_header(str(path)).size
    except BrokenImageError as error:
        raise UserError(f"--image_path {path} cannot be read as an image: {error}; check the path") from None
    if min(width, height) < _UNIT:
        raise UserError(f"--image_path {path} has {width} x {height} pixels; give an image of 32 or more")
    return width // _UNIT * _UNIT, height // _UNIT * _UNIT
