"""What a model that is told how its images were framed is told, where that is not the image's own size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SizeConditions:
    """Sizes in pixels that an image pretends to come from; None follows from the image.

    Attributes:
        original_width, original_height: before it was scaled to its size; None is the size.
        original_width_negative, original_height_negative: the same for the negative prompt; None is what the
            prompt is told.
        crop_top, crop_left: what was cut off; None is 0.
    """

    original_width: int | None = None
    original_height: int | None = None
    original_width_negative: int | None = None
    original_height_negative: int | None = None
    crop_top: int | None = None
    crop_left: int | None = None
