"""Which images meet in which batch, in which order: a pure function of seed and epoch.

Batches never mix buckets or data sets; the last one of a bucket may be short.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, overload

from sfumato import seeds
from sfumato.data.images.buckets import Size


class OrderedImage(NamedTuple):
    """One showing of an image: its index in the data set, and which of its repeats this is."""

    image: int
    repeat: int


@dataclass
class Showings:
    """Items in two columns, so that a long epoch takes little memory."""

    images: array[int] = field(default_factory=lambda: array("i"))
    repeats: array[int] = field(default_factory=lambda: array("i"))

    def add(self, image: int, num_repeats: int) -> None:
        """Add every repeat of an image."""
        self.images.extend([image] * num_repeats)
        self.repeats.extend(range(num_repeats))

    def take(self, other: Showings, order: Iterable[int]) -> None:
        """Add items of another in an order of its positions."""
        for at in order:
            self.images.append(other.images[at])
            self.repeats.append(other.repeats[at])

    def items(self, start: int, end: int) -> tuple[OrderedImage, ...]:
        """Return the items at positions from `start` to before `end`."""
        return tuple(map(OrderedImage, self.images[start:end], self.repeats[start:end]))

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class BatchPlan:
    """What one batch is made of; small, so that it can be sent to a loader's worker.

    Attributes:
        epoch: counted from 1.
        index: position in the epoch.
        step: optimizer steps done before this batch.
        dataset: index of the data set.
    """

    epoch: int
    index: int
    step: int
    dataset: int
    items: tuple[OrderedImage, ...]


@dataclass(frozen=True)
class EpochPlan(Sequence[BatchPlan]):
    """The batches of one epoch or some of them; a `BatchPlan` is made when it is asked for.

    Attributes:
        first_step: optimizer steps done before the epoch.
        num_per_step: batches that make one optimizer step.
        showings: items in the order in which batches are cut from them.
        starts: where each cut begins, and where the last ends.
        datasets: the data set of each cut.
        order: which cut is trained at each position of the epoch.
        positions: of the batches that are asked for, in the epoch.
    """

    epoch: int
    first_step: int
    num_per_step: int
    showings: Showings
    starts: array[int]
    datasets: array[int]
    order: array[int]
    positions: Sequence[int]

    def select(self, positions: Iterable[int]) -> EpochPlan:
        """Return the batches at these positions of this plan."""
        return replace(self, positions=array("i", [self.positions[at] for at in positions]))

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> BatchPlan: ...
    @overload
    def __getitem__(self, index: slice) -> EpochPlan: ...
    def __getitem__(self, index: int | slice) -> BatchPlan | EpochPlan:
        if isinstance(index, slice):
            return replace(self, positions=self.positions[index])
        position = self.positions[index]
        cut = self.order[position]
        return BatchPlan(
            self.epoch,
            position,
            self.first_step + position // self.num_per_step,
            self.datasets[cut],
            self.showings.items(self.starts[cut], self.starts[cut + 1]),
        )


def plan_epoch(
    buckets: Sequence[Mapping[Size, Showings]],
    batch_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    num_per_step: int = 1,
) -> EpochPlan:
    """Return the batches of one epoch in the order in which they are trained.

    Args:
        buckets: for each data set, the items of each bucket.
        batch_sizes: one for each data set.
        num_per_step: batches that make one optimizer step (accumulation times processes).
    """
    rng = random.Random(seeds.derive("order", seed, epoch))
    showings, starts, datasets = Showings(), array("q"), array("i")
    for dataset, (by_size, batch_size) in enumerate(zip(buckets, batch_sizes, strict=True)):
        for items in _by_size(by_size):
            first = len(showings)
            showings.take(items, _shuffled(len(items), rng))
            starts.extend(range(first, len(showings), batch_size))
            datasets.extend([dataset] * (len(starts) - len(datasets)))
    starts.append(len(showings))
    order = _shuffled(len(datasets), rng)
    first_step = (epoch - 1) * -(-len(order) // num_per_step)
    positions = range(len(order))
    return EpochPlan(epoch, first_step, num_per_step, showings, starts, datasets, order, positions)


def _by_size(buckets: Mapping[Size, Showings]) -> Iterator[Showings]:
    return (buckets[size] for size in sorted(buckets))


def _shuffled(length: int, rng: random.Random) -> array[int]:
    order = array("i", range(length))
    rng.shuffle(order)
    return order
