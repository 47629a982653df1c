"""Pictures of which only latents are left: sd-scripts' `<picture>.npz`, with the picture's size in it.

Pixels and loss masks are gone, so such files serve only where latents come from files.
"""

from __future__ import annotations

import zipfile

import numpy as np

from sfumato.data.images.images import BrokenPictureError, ImageHeader

SUFFIX = ".npz"


def read_header(path: str) -> ImageHeader:
    """Return the (width, height) of the picture that the latents in a file were made of.

    Raises:
        BrokenPictureError: the file is damaged, or holds no latents.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not {"latents", "original_size"} <= set(archive.files):
                raise BrokenPictureError("it holds no latents, or not the size of their picture")
            width, height = archive["original_size"].tolist()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BrokenPictureError(f"it cannot be read: {error}") from error
    return ImageHeader((int(width), int(height)))
