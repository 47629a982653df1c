"""Buckets as programs ask for them that count a run's steps before they start it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sfumato.data.images.buckets import BucketChoice, Buckets, Fit, Size, bucket_sizes


class BucketManager:
    """Sorts images into buckets as a run does.

    Args:
        no_upscale: never enlarge an image.
        max_reso: width and height whose area no bucket exceeds.
        min_size, max_size: limits of a bucket's sides; not used with buckets that are given.
        reso_steps: what sides are multiples of.

    Attributes:
        buckets: what was put into each, in the order in which buckets were first chosen.
    """

    def __init__(
        self,
        no_upscale: bool,
        max_reso: Sequence[int],
        min_size: int | None,
        max_size: int | None,
        reso_steps: int | None,
    ) -> None:
        self.no_upscale = no_upscale
        self.max_reso: Size = (int(max_reso[0]), int(max_reso[1]))
        self.min_size, self.max_size, self.reso_steps = min_size, max_size, reso_steps
        self.resos: list[Size] = []
        self.reso_to_id: dict[Size, int] = {}
        self.buckets: list[list[Any]] = []
        self._choice = BucketChoice.of([self.max_reso])

    def make_buckets(self) -> None:
        """Choose among all buckets that the limits allow.

        Raises:
            ValueError: there are no limits or steps.
        """
        if not (self.min_size and self.max_size and self.reso_steps):
            raise ValueError("make_buckets needs min_size, max_size and reso_steps")
        self.set_predefined_resos(bucket_sizes(self.max_reso, self.min_size, self.max_size, self.reso_steps))

    def set_predefined_resos(self, resos: Sequence[Sequence[int]]) -> None:
        """Choose among these widths and heights."""
        self._choice = BucketChoice.of(sorted((int(reso[0]), int(reso[1])) for reso in resos))

    def select_bucket(self, image_width: int, image_height: int) -> Fit:
        """Return an image's bucket, the size it is resized to, and the error of its aspect ratio."""
        size = (image_width, image_height)
        if self.no_upscale:
            step = self.reso_steps or 1
            fit = Buckets(self.max_reso, step=step, no_upscale=True).fit(size)
        else:
            fit = self._choice.fit(size)
        self._add(fit.bucket)
        return fit

    def add_image(self, reso: Sequence[int], image: object) -> None:
        """Put something into a bucket that was chosen before."""
        self.buckets[self.reso_to_id[reso[0], reso[1]]].append(image)

    def _add(self, reso: Size) -> None:
        if reso not in self.reso_to_id:
            self.reso_to_id[reso] = len(self.resos)
            self.resos.append(reso)
            self.buckets.append([])
