"""Images of which only latents are left: `<image>_<width>x<height>_sd.npz`, or sd-scripts' `<image>.npz`.

The image's size is in both. Pixels and loss masks are gone, so such files serve only where latents come from
files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from sfumato.data.images.buckets import Size
from sfumato.data.images.images import BrokenImageError, ImageHeader
from sfumato.errors import UserError, guest_code

SUFFIX = ".npz"
_LONGEST_SIDE = 1 << 20


def by_stem(names: Iterable[str], ending: str) -> dict[str, str]:
    """Return the files of latents among `names` by their images' stems; sd-scripts' own go first.

    Args:
        ending: of the others' names, behind the image's size; "" where there are none.
    """
    sized = re.compile(rf"(.+)_\d{{4,}}x\d{{4,}}{re.escape(ending)}")
    files = [name for name in names if name.endswith(SUFFIX)]
    found = {match[1]: name for name in files if ending and (match := sized.fullmatch(name))}
    return found | {name.removesuffix(SUFFIX): name for name in files}


def image_of(path: str, size: Size) -> str:
    """Return the path by which an image goes: its own, or that of latents without the image's size."""
    if not path.endswith(SUFFIX):
        return path
    width, height = size
    stem, marked, _ = path.rpartition(f"_{width:04d}x{height:04d}_")
    return stem + SUFFIX if marked else path


def read_header(path: str) -> ImageHeader:
    """Return the (width, height) of the image that the latents in a file were made of.

    Raises:
        BrokenImageError: the file is damaged, or holds no latents.
    """
    try:
        with guest_code("it cannot be read"), open(path, "rb") as file, np.load(file) as archive:
            size = archive["original_size"].tolist() if "latents" in archive.files else None
    except UserError as error:
        raise BrokenImageError(str(error)) from error
    if not isinstance(size, list) or len(size) != 2 or not all(_is_side(side) for side in size):
        raise BrokenImageError("it holds no latents, or not the size of their image")
    return ImageHeader((int(size[0]), int(size[1])))


def _is_side(value: object) -> bool:
    return isinstance(value, int | float) and 1 <= value <= _LONGEST_SIDE
