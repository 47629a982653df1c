"""Sentences about a new word, which stand in for captions (Gal et al. 2022, arXiv:2208.01618, section 4).

They are those of the published method, in its order, since a choice among them is drawn by number.
"""

from __future__ import annotations

_PHOTOS = """
a photo of a {}
a rendering of a {}
a cropped photo of the {}
the photo of a {}
a photo of a clean {}
a photo of a dirty {}
a dark photo of the {}
a photo of my {}
a photo of the cool {}
a close-up photo of a {}
a bright photo of the {}
a cropped photo of a {}
a photo of the {}
a good photo of the {}
a photo of one {}
a close-up photo of the {}
a rendition of the {}
a photo of the clean {}
a rendition of a {}
a photo of a nice {}
a good photo of a {}
a photo of the nice {}
a photo of the small {}
a photo of the weird {}
a photo of the large {}
a photo of a cool {}
a photo of a small {}
"""
_PAINTINGS = """
a painting
a rendering
a cropped painting
the painting
a clean painting
a dirty painting
a dark painting
a picture
a cool painting
a close-up painting
a bright painting
a cropped painting
a good painting
a close-up painting
a rendition
a nice painting
a small painting
a weird painting
a large painting
"""


def of_object(word: str) -> tuple[str, ...]:
    """Return sentences that name a thing."""
    return tuple(line.replace("{}", word) for line in _PHOTOS.strip().split("\n"))


def of_style(word: str) -> tuple[str, ...]:
    """Return sentences that name a style."""
    return tuple(f"{line} in the style of {word}" for line in _PAINTINGS.strip().split("\n"))
