from __future__ import annotations

import os
import pickle
import random

import pytest

from sfumato import seeds
from sfumato.data.batches.order import BatchPlan, OrderedImage, Showings, plan_epoch
from sfumato.data.images.buckets import Buckets, bucket_sizes
from sfumato.data.sources.image_table import ImageTable, TrainingImage

IMAGES = [
    TrainingImage("/a/ü 1.png", (640, 480), "one, two", 0, 3, (5, 2**61)),
    TrainingImage(os.fsdecode(b"/a/\xff.png"), (1, 70_000), "", 1, 1, (0, -(2**40))),
    TrainingImage("", (2, 2), "línea\notra", 2, 2_000_000, (2**40, 7), "/masks/x.png"),
]


def test_a_table_gives_back_the_images_that_were_put_in() -> None:
    table = ImageTable()
    table.extend(IMAGES)
    assert list(table) == IMAGES
    assert table[-1] == IMAGES[-1]
    assert table[1:] == IMAGES[1:]
    assert list(table.sizes) == [image.size for image in IMAGES]
    assert pickle.loads(pickle.dumps(table)) == table
    with pytest.raises(IndexError):
        table[3]


def test_an_image_takes_little_more_than_its_words() -> None:
    table = ImageTable()
    table.extend(
        TrainingImage(f"/folder/{i:06d}.png", (64, 64), "x" * 40, 0, 1, (i, i)) for i in range(10_000)
    )
    assert len(pickle.dumps(table)) < 10_000 * (18 + 40 + 64)


def test_an_epoch_is_a_shuffle_of_each_bucket_cut_and_shuffled_again() -> None:
    sizes = {(64, 64): 5, (96, 32): 4, (32, 96): 1}
    buckets = {size: Showings() for size in sizes}
    for size, number in sizes.items():
        for image in range(number):
            buckets[size].add(image, 2)
    found = plan_epoch([buckets, buckets], [3, 2], seed=4, epoch=2, num_per_step=4)
    rng, cuts = random.Random(seeds.derive("order", 4, 2)), []
    for dataset, batch_size in enumerate([3, 2]):
        for _, number in sorted(sizes.items()):
            items = [OrderedImage(image, repeat) for image in range(number) for repeat in range(2)]
            rng.shuffle(items)
            cuts += [(dataset, tuple(items[i : i + batch_size])) for i in range(0, 2 * number, batch_size)]
    rng.shuffle(cuts)
    first = -(-len(cuts) // 4)
    expected = [BatchPlan(2, i, first + i // 4, *cut) for i, cut in enumerate(cuts)]
    assert list(found) == expected
    assert list(found[3:7]) == expected[3:7]
    assert list(found[2:].select([0, 3, 4])) == [expected[i] for i in (2, 5, 6)]


def test_the_nearest_bucket_is_the_first_of_the_nearest_in_ratio() -> None:
    buckets = Buckets((512, 512), 128, 512, 64)
    sizes = bucket_sizes((512, 512), 128, 512, 64)
    rng = random.Random(1)
    for _ in range(2000):
        size = (rng.randint(1, 3000), rng.randint(1, 3000))
        ratio = size[0] / size[1]
        expected = size if size in sizes else min(sizes, key=lambda b: abs(b[0] / b[1] - ratio))
        assert buckets.fit(size).bucket == expected
