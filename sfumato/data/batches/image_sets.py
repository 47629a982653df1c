"""One data set of a run: its images, and the bucket that each belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sfumato.data.batches.order import Showings
from sfumato.data.config.plan import DatasetPlan, SubsetPlan
from sfumato.data.images.buckets import Fit, Size, covering
from sfumato.data.images.masks import MaskSource
from sfumato.data.sources.image_table import ImageTable


@dataclass(frozen=True)
class ImageSet:
    """One data set: images that are trained at the same resolution and batch size."""

    plan: DatasetPlan
    images: ImageTable

    def subset(self, image: int) -> SubsetPlan:
        """Return the subset that an image belongs to."""
        return self.plan.subsets[self.images.subsets[image]]

    def size(self, image: int) -> Size:
        """Return the upright (width, height) of an image."""
        return self.images.widths[image], self.images.heights[image]

    def fit(self, image: int) -> Fit:
        """Return how an image meets its bucket."""
        given = self.images.train_size(image)
        return covering(given, self.size(image)) if given else self.plan.buckets.fit(self.size(image))

    @property
    def has_buckets(self) -> bool:
        """Whether images may be trained at several sizes."""
        return self.plan.buckets.enabled or self.images.has_train_sizes

    def mask(self, image: int) -> MaskSource | None:
        """Return where an image's loss mask comes from, if it has one."""
        path = self.images.masks[image]
        return MaskSource(path or None) if path or self.subset(image).alpha_mask else None

    def control(self, image: int) -> str | None:
        """Return the path of an image's control image, if it has one."""
        return self.images.control(image)

    @property
    def num_train_images(self) -> int:
        """Images in an epoch that are not regularisation images, repeats counted."""
        is_train = [not subset.is_reg for subset in self.plan.subsets]
        pairs = zip(self.images.subsets, self.images.repeats, strict=True)
        return sum(repeats for subset, repeats in pairs if is_train[subset])

    @property
    def num_reg_images(self) -> int:
        """Regularisation images, with the repeats asked for rather than those after balancing."""
        repeats = [subset.num_repeats if subset.is_reg else 0 for subset in self.plan.subsets]
        return sum(repeats[subset] for subset in self.images.subsets)

    @cached_property
    def buckets(self) -> dict[Size, Showings]:
        """Every showing of every image in an epoch, by bucket."""
        found: dict[Size, Showings] = {}
        if self.images.has_train_sizes:
            for index, repeats in enumerate(self.images.repeats):
                found.setdefault(self.fit(index).bucket, Showings()).add(index, repeats)
            return found
        by_size: dict[Size, Showings] = {}
        for index, (size, repeats) in enumerate(zip(self.images.sizes, self.images.repeats, strict=True)):
            if size not in by_size:
                by_size[size] = found.setdefault(self.plan.buckets.fit(size).bucket, Showings())
            by_size[size].add(index, repeats)
        return found

    def short_batches(self) -> str:
        """Return a line about the buckets that hold fewer images than a batch; empty if there are none."""
        counts = {size: len(items) for size, items in self.buckets.items()}
        short = {size: count for size, count in counts.items() if count < self.plan.batch_size}
        if not short:
            return ""
        (width, height), count = min(short.items(), key=lambda item: (item[1], item[0]))
        return (
            f"train_batch_size is {self.plan.batch_size}, and {len(short)} of {len(counts)} buckets hold "
            f"fewer images, repeats counted (bucket {width}x{height} holds {count}); their batches are "
            "smaller"
        )
