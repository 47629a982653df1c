"""Partner images, which are control images or loss masks: those of the same name in another folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from sfumato.data.images.images import is_image, stem


def pairs(images: Iterable[str], folder: str, names: Iterable[str]) -> dict[str, str]:
    """Return the path of the image in `folder` that belongs to each of `images`; some may have none.

    Args:
        images: file names; those with the same stem share a partner.
        names: of the files in `folder`; of several with the same stem the first in sorted order counts.
    """
    by_stem = {stem(name): name for name in sorted(names, reverse=True) if is_image(name)}
    return {image: os.path.join(folder, by_stem[stem(image)]) for image in images if stem(image) in by_stem}


def surplus(used: Iterable[str], folder: str, names: Iterable[str]) -> list[str]:
    """Return the images in `folder` that are not among the paths `used`."""
    belonging = set(used)
    return sorted(n for n in names if is_image(n) and os.path.join(folder, n) not in belonging)


def lonely(images: Sequence[str], paired: dict[str, str]) -> list[str]:
    """Return the images that have no partner."""
    return [image for image in images if image not in paired]
