"""One data set of a run: its pictures, and the bucket that each belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sfumato.data.batches.order import Showings
from sfumato.data.config.plan import DatasetPlan, SubsetPlan
from sfumato.data.images.buckets import Fit, Size, covering
from sfumato.data.images.masks import MaskSource
from sfumato.data.sources.image_table import PictureTable


@dataclass(frozen=True)
class PictureSet:
    """One data set: pictures that are trained at the same resolution and batch size."""

    plan: DatasetPlan
    pictures: PictureTable

    def subset(self, picture: int) -> SubsetPlan:
        """Return the subset that a picture belongs to."""
        return self.plan.subsets[self.pictures.subsets[picture]]

    def size(self, picture: int) -> Size:
        """Return the upright (width, height) of a picture."""
        return self.pictures.widths[picture], self.pictures.heights[picture]

    def fit(self, picture: int) -> Fit:
        """Return how a picture meets its bucket."""
        given = self.pictures.train_size(picture)
        return covering(given, self.size(picture)) if given else self.plan.buckets.fit(self.size(picture))

    @property
    def has_buckets(self) -> bool:
        """Whether pictures may be trained at several sizes."""
        return self.plan.buckets.enabled or self.pictures.has_train_sizes

    def mask(self, picture: int) -> MaskSource | None:
        """Return where a picture's loss mask comes from, if it has one."""
        path = self.pictures.conditionings[picture]
        return MaskSource(path or None) if path or self.subset(picture).alpha_mask else None

    @property
    def num_train_images(self) -> int:
        """Pictures in an epoch that are not regularisation pictures, repeats counted."""
        is_train = [not subset.is_reg for subset in self.plan.subsets]
        pairs = zip(self.pictures.subsets, self.pictures.repeats, strict=True)
        return sum(repeats for subset, repeats in pairs if is_train[subset])

    @property
    def num_reg_images(self) -> int:
        """Regularisation pictures, with the repeats asked for rather than those after balancing."""
        repeats = [subset.num_repeats if subset.is_reg else 0 for subset in self.plan.subsets]
        return sum(repeats[subset] for subset in self.pictures.subsets)

    @cached_property
    def buckets(self) -> dict[Size, Showings]:
        """Every showing of every picture in an epoch, by bucket."""
        found: dict[Size, Showings] = {}
        if self.pictures.has_train_sizes:
            for index, repeats in enumerate(self.pictures.repeats):
                found.setdefault(self.fit(index).bucket, Showings()).add(index, repeats)
            return found
        by_size: dict[Size, Showings] = {}
        for index, (size, repeats) in enumerate(zip(self.pictures.sizes, self.pictures.repeats, strict=True)):
            if size not in by_size:
                by_size[size] = found.setdefault(self.plan.buckets.fit(size).bucket, Showings())
            by_size[size].add(index, repeats)
        return found
