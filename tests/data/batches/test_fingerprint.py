"""A fingerprint tells what has changed of a run's data, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sfumato.data.batches import dataset
from sfumato.data.config.plan import DatasetPlan
from tests import tiny
from tests.data.folders import plan, subset


def changed(first: DatasetPlan, second: DatasetPlan) -> set[str]:
    one, other = (dataset.read([each], seed=0).fingerprint() for each in (first, second))
    return {name for name, value in one.items() if other[name] != value}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders of the same pictures in different places."""
    for name in ("one", "two"):
        tiny.pictures(tmp_path / name, 3, size=(16, 16))
    return tmp_path / "one", tmp_path / "two"


def test_data_may_move(folders: tuple[Path, Path]) -> None:
    one, two = (plan(subset(folder)) for folder in folders)
    assert changed(one, two) == set()


def test_a_caption_and_an_image_that_change_are_told_apart(folders: tuple[Path, Path]) -> None:
    one, two = (plan(subset(folder)) for folder in folders)
    next(folders[1].glob("*.txt")).write_text("a dog")
    assert changed(one, two) == {"captions"}
    next(folders[1].glob("*.png")).unlink()
    assert changed(one, two) == {"captions", "images", "batches"}


def test_repeats_and_batch_sizes_decide_the_batches(folders: tuple[Path, Path]) -> None:
    one = plan(subset(folders[0]))
    assert changed(one, plan(subset(folders[1], num_repeats=2))) == {"batches"}
    assert changed(one, dataclasses.replace(one, batch_size=one.batch_size + 1)) == {"batches"}
