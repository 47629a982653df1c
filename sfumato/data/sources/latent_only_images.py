"""Images of which only latents are left: `<image>_<width>x<height>_sd.npz`, or sd-scripts' `<image>.npz`.

The image's size is in both. Pixels and loss masks are gone, so such files serve only where latents come from
files.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable

import numpy as np

from sfumato.data.images.buckets import Size
from sfumato.data.images.images import BrokenImageError, ImageHeader

SUFFIX = ".npz"


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
        with np.load(path, allow_pickle=False) as archive:
            if not {"latents", "original_size"} <= set(archive.files):
                raise BrokenImageError("it holds no latents, or not the size of their image")
            width, height = archive["original_size"].tolist()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BrokenImageError(f"it cannot be read: {error}") from error
    return ImageHeader((int(width), int(height)))
