"""How many regularisation images data sets lack to have as many as images to train on, repeats counted."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.config.checks import sides
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.data.batches.image_sets import ImageSet
from sfumato.data.config.plan import SubsetPlan
from sfumato.data.images.buckets import Size


@dataclass(frozen=True)
class MissingImages:
    """Regularisation images that a subset lacks.

    Attributes:
        number: of files; each is seen `subset.num_repeats` times in an epoch.
        size: (width, height) in pixels that the data set is trained at.
    """

    subset: SubsetPlan
    number: int
    size: Size


def missing_images(sets: Sequence[ImageSet]) -> list[MissingImages]:
    """Return what each subset of regularisation images lacks, the largest size first.

    Subsets of one data set are filled up from the one with the fewest images. What is made for one data set
    counts in the others that have the same folder.
    """
    made: Counter[Path] = Counter()
    found: list[MissingImages] = []
    for images in sorted(sets, key=_area, reverse=True):
        for subset, number in _missing(images, made):
            found.append(MissingImages(subset, number, images.plan.buckets.resolution))
            made[subset.source] += number
    return found


def offer(run: Run, sets: Sequence[ImageSet]) -> str:
    """Return a line about the images that are missing and the command that makes them; empty if none are."""
    missing = missing_images(sets)
    if not missing:
        return ""
    folders = ", ".join(f"{lack.subset.source} ({lack.number})" for lack in missing)
    return (
        f"there are fewer regularisation images than others, so that they are seen more often; missing are: "
        f"{folders}. The base makes them: `{_command(run)}` with the options that name the model"
    )


def _area(images: ImageSet) -> int:
    width, height = images.plan.buckets.resolution
    return width * height


def _missing(images: ImageSet, made: Counter[Path]) -> Iterator[tuple[SubsetPlan, int]]:
    """Yield the subsets that lack images, and how many.

    Args:
        made: images that are not there yet, but will be, by folder.
    """
    subsets = images.plan.subsets
    seen = {
        index: (images.images.subsets.count(index) + made[subset.source]) * subset.num_repeats
        for index, subset in enumerate(subsets)
        if subset.is_reg and subset.num_repeats > 0
    }
    left = images.num_train_images - sum(seen.values())
    level = _level(seen.values(), images.num_train_images) if seen else 0
    for index, showings in seen.items():
        number = -(-min(level - showings, left) // subsets[index].num_repeats)
        if number > 0:
            yield subsets[index], number
            left -= number * subsets[index].num_repeats


def _level(heights: Iterable[int], total: int) -> int:
    """Return the height up to which the lowest are filled so that all together reach `total`."""
    ordered = sorted(heights)
    for number in range(len(ordered), 1, -1):
        level = -(-(total - sum(ordered[number:])) // number)
        if level > ordered[number - 1]:
            return level
    return total - sum(ordered[1:])


def _command(run: Run) -> str:
    data = run[DatasetConfig]
    named = [data.dataset_config] if data.dataset_config else [data.train_data_dir, data.reg_data_dir]
    words = ["sfumato", "generate", run.family, "--for_regularisation", *map(str, named)]
    if resolution := run[ImageConfig].resolution:
        width, height = sides("resolution", resolution)
        words += ["--width", str(width), "--height", str(height)]
    return shlex.join(words)
