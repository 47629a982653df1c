"""How many regularisation images are missing, counted as training balances them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.data.batches import dataset
from sfumato.data.batches.regularisation import missing_images, offer
from sfumato.data.config.plan import DatasetPlan
from tests.data.folders import folder, plan, subset


def missing(*plans: DatasetPlan) -> list[tuple[str, int, tuple[int, int]]]:
    found = missing_images(dataset.read(plans, seed=0).sets)
    return [(lack.subset.name, lack.number, lack.size) for lack in found]


@pytest.mark.parametrize(
    ("present", "repeats", "number"), [(0, 1, 6), (1, 1, 5), (1, 2, 2), (2, 4, 0), (6, 1, 0), (9, 1, 0)]
)
def test_regularisation_images_are_to_be_as_many_as_the_others(
    tmp_path: Path, present: int, repeats: int, number: int
) -> None:
    trained = subset(folder(tmp_path / "a", [(64, 64)] * 2), num_repeats=3)
    (tmp_path / "cat").mkdir()
    reg = subset(folder(tmp_path / "cat", [(64, 64)] * present), is_reg=True, num_repeats=repeats)
    found = missing(plan(trained, reg))
    assert found == ([("cat", number, (64, 64))] if number else [])


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ((0, 0), {"cat": 4, "dog": 3}),
        ((1, 4), {"cat": 2}),
        ((2, 1), {"cat": 2, "dog": 2}),
        ((7, 0), {}),
    ],
)
def test_classes_are_filled_up_from_the_one_with_the_fewest(
    tmp_path: Path, present: tuple[int, int], expected: dict[str, int]
) -> None:
    trained = subset(folder(tmp_path / "a", [(64, 64)] * 7))
    reg = [
        subset(folder(tmp_path / name, [(64, 64)] * number), is_reg=True)
        for name, number in zip(("cat", "dog"), present, strict=True)
    ]
    found = {name: number for name, number, _ in missing(plan(trained, *reg))}
    assert found == expected
    assert not found or sum(present) + sum(found.values()) == 7


def test_images_made_for_one_data_set_count_in_another_that_has_the_folder(tmp_path: Path) -> None:
    trained, reg = folder(tmp_path / "a", [(64, 64)] * 3), subset(tmp_path / "cat", is_reg=True)
    small = plan(subset(trained, num_repeats=2), reg, resolution=32)
    large = plan(subset(trained), reg, resolution=64)
    assert missing(small, large) == [("cat", 3, (64, 64)), ("cat", 3, (32, 32))]
    assert missing(plan(subset(trained, num_repeats=2), reg), large) == [("cat", 6, (64, 64))]


def test_training_offers_the_command_that_makes_them(tmp_path: Path) -> None:
    sets = dataset.read(
        [plan(subset(folder(tmp_path / "a", [(64, 64)])), subset(tmp_path / "cat", is_reg=True))], seed=0
    ).sets
    data = DatasetConfig(dataset_config=Path("my data.toml"))
    line = offer(Run("train", "sd", [data, ImageConfig()]), sets)
    assert f"missing are: {tmp_path / 'cat'} (1)" in line
    assert "`sfumato generate sd --for_regularisation 'my data.toml'`" in line
    folders = DatasetConfig(train_data_dir="a", reg_data_dir="b")
    line = offer(Run("train", "sd", [folders, ImageConfig(resolution="64")]), sets)
    assert "--for_regularisation a b --width 64 --height 64`" in line


def test_nothing_is_offered_where_no_image_is_missing(tmp_path: Path) -> None:
    sets = dataset.read([plan(subset(folder(tmp_path / "a", [(64, 64)])))], seed=0).sets
    assert offer(Run("train", "sd", [DatasetConfig(), ImageConfig()]), sets) == ""
