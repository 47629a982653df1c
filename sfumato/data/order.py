"""Which pictures meet in which batch, in which order: a pure function of seed and epoch.

Batches never mix buckets or data sets; the last one of a bucket may be short.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sfumato import seeds
from sfumato.data.buckets import Size


class Item(NamedTuple):
    """One showing of a picture: its index in the data set, and which of its repeats this is."""

    picture: int
    repeat: int


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
    items: tuple[Item, ...]


def plan_epoch(
    buckets: Sequence[Mapping[Size, Sequence[Item]]],
    batch_sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    num_per_step: int = 1,
) -> list[BatchPlan]:
    """Return the batches of one epoch in the order in which they are trained.

    Args:
        buckets: for each data set, the items of each bucket.
        batch_sizes: one for each data set.
        num_per_step: batches that make one optimizer step (accumulation times processes).
    """
    rng = random.Random(seeds.derive("order", seed, epoch))
    batches = [
        (dataset, items)
        for dataset, (by_size, batch_size) in enumerate(zip(buckets, batch_sizes, strict=True))
        for items in _batches(by_size, batch_size, rng)
    ]
    rng.shuffle(batches)
    first_step = (epoch - 1) * -(-len(batches) // num_per_step)
    return [
        BatchPlan(epoch, index, first_step + index // num_per_step, dataset, items)
        for index, (dataset, items) in enumerate(batches)
    ]


def _batches(
    by_size: Mapping[Size, Sequence[Item]], batch_size: int, rng: random.Random
) -> list[tuple[Item, ...]]:
    batches = []
    for _, items in sorted(by_size.items()):
        shuffled = list(items)
        rng.shuffle(shuffled)
        batches += [tuple(shuffled[at : at + batch_size]) for at in range(0, len(shuffled), batch_size)]
    return batches
