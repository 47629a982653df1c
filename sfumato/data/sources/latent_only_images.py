"""Images of which only latents are left: sd-scripts' `<image>.npz`, with the image's size in it.

Pixels and loss masks are gone, so such files serve only where latents come from files.
"""

from __future__ import annotations

import zipfile

import numpy as np

from sfumato.data.images.images import BrokenImageError, ImageHeader

SUFFIX = ".npz"


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
