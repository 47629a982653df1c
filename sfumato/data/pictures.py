"""One data set of a run: its pictures, and the bucket that each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sfumato.data.buckets import Fit, Size
from sfumato.data.order import Item
from sfumato.data.plan import DatasetPlan, SubsetPlan
from sfumato.data.sources import Picture


@dataclass(frozen=True)
class PictureSet:
    """One data set: pictures that are trained at the same resolution and batch size."""

    plan: DatasetPlan
    pictures: Sequence[Picture]

    def subset(self, picture: int) -> SubsetPlan:
        """Return the subset that a picture belongs to."""
        return self.plan.subsets[self.pictures[picture].subset]

    def fit(self, picture: int) -> Fit:
        """Return how a picture meets its bucket."""
        return self._fits[self.pictures[picture].size]

    @property
    def num_train_images(self) -> int:
        """Pictures in an epoch that are not regularisation pictures, repeats counted."""
        return sum(p.num_repeats for i, p in enumerate(self.pictures) if not self.subset(i).is_reg)

    @property
    def num_reg_images(self) -> int:
        """Regularisation pictures, with the repeats asked for rather than those after balancing."""
        subsets = map(self.subset, range(len(self.pictures)))
        return sum(subset.num_repeats for subset in subsets if subset.is_reg)

    @cached_property
    def buckets(self) -> dict[Size, list[Item]]:
        """Every showing of every picture in an epoch, by bucket."""
        found: dict[Size, list[Item]] = {}
        for index, picture in enumerate(self.pictures):
            items = (Item(index, repeat) for repeat in range(picture.num_repeats))
            found.setdefault(self.fit(index).bucket, []).extend(items)
        return found

    @cached_property
    def _fits(self) -> dict[Size, Fit]:
        return {size: self.plan.buckets.fit(size) for size in {picture.size for picture in self.pictures}}
