from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.config import blueprint
from sfumato.data.config.plan import DatasetPlan
from sfumato.data.sources.validation import split
from sfumato.errors import UserError
from tests.data.folders import folder, plan, subset


def names(images: TrainingSet | None) -> list[str]:
    return [] if images is None else [Path(p.path).name for s in images.sets for p in s.images]


@pytest.mark.parametrize(
    ("count", "share", "trained"), [(10, 0.2, 8), (10, 0.25, 8), (3, 0.5, 2), (7, 0.1, 7), (4, 1.0, 0)]
)
def test_an_image_is_either_trained_or_for_validation(count: int, share: float, trained: int) -> None:
    first, second = split(range(count), share, seed=3)
    assert len(first) == trained
    assert sorted(first + second) == list(range(count))


def test_the_trained_ones_are_the_first_of_a_seeded_shuffle() -> None:
    # random.seed(42); order = list(range(10)); random.shuffle(order) gives 7 3 2 8 5 6 9 4 0 1
    assert split(range(10), 0.3, seed=42) == ([2, 3, 5, 6, 7, 8, 9], [0, 1, 4])


def test_validation_images_are_shown_once_and_as_they_are(tmp_path: Path) -> None:
    varied = CaptionSettings(caption_dropout_rate=1.0, caption_tag_dropout_rate=0.9, token_warmup_step=9)
    own = subset(folder(tmp_path / "cat", [(64, 64)] * 10), num_repeats=3, flip_aug=True, captions=varied)
    reg = subset(folder(tmp_path / "reg", [(64, 64)]), is_reg=True)
    wanted = plan(own, reg, validation_split=0.3, validation_seed=42)
    found = dataset.read([wanted], seed=1)
    assert names(found) == [f"im{i}.png" for i in (2, 3, 5, 6, 7, 8, 9)] + ["im0.png"]
    assert names(found.validation) == ["im0.png", "im1.png", "im4.png"]
    assert found.validation is not None
    assert (found.num_train_images, found.validation.num_train_images) == (21, 3)
    batches = [found.validation[p] for p in found.validation.batches(1)]
    captions = dict(pair for b in batches for pair in zip(b.paths, b.captions, strict=True))
    assert {Path(p).name: sorted(c.split(", ")) for p, c in captions.items()} == {
        f"im{i}.png": [f"{letter}{i}" for letter in "abcd"] for i in (0, 1, 4)
    }


def test_without_a_share_no_image_is_for_validation(tmp_path: Path) -> None:
    found = dataset.read([plan(subset(folder(tmp_path / "cat", [(64, 64)] * 4)))], seed=1)
    assert found.validation is None
    assert len(names(found)) == 4


def test_a_share_of_less_than_one_image_is_said(tmp_path: Path) -> None:
    wanted = plan(subset(folder(tmp_path / "cat", [(64, 64)] * 4)), validation_split=0.1)
    with pytest.raises(UserError, match=r"validation_split 0.1 of 4 images is less than one image"):
        dataset.read([wanted], seed=1, strict=True)


def test_a_share_of_one_makes_a_whole_data_set_the_validation_set(tmp_path: Path) -> None:
    cats, dogs = (subset(folder(tmp_path / name, [(64, 64)] * 2)) for name in ("cats", "dogs"))
    whole = plan(dogs, validation_split=1.0)
    found = dataset.read([whole, plan(cats)], seed=1)
    assert [Path(image.path).parent.name for s in found.sets for image in s.images] == ["cats"] * 2
    assert found.validation is not None
    assert [Path(image.path).parent.name for s in found.validation.sets for image in s.images] == ["dogs"] * 2
    with pytest.raises(UserError, match=r"validation_split 1.0 leaves no image to train on; use a smaller"):
        dataset.read([whole], seed=1)


def read(tmp_path: Path, keys: str, config: DatasetConfig, seed: int = 5) -> DatasetPlan:
    file = tmp_path / "data.toml"
    file.write_text(f"[[datasets]]\nresolution = 64\n{keys}\n[[datasets.subsets]]\nimage_dir = 'a'\n")
    where = DatasetConfig(
        dataset_config=file,
        validation_split=config.validation_split,
        validation_seed=config.validation_seed,
    )
    (found,) = blueprint.plans(
        Run("script", "family", [where, CaptionConfig(), ImageConfig(), LossConfig()]), seed=seed
    )
    return found


@pytest.mark.parametrize(
    ("keys", "config", "expected"),
    [
        ("", DatasetConfig(), (0.0, 5)),
        ("", DatasetConfig(validation_split=0.2), (0.2, 5)),
        ("validation_split = 0.5", DatasetConfig(validation_split=0.2, validation_seed=7), (0.5, 7)),
        ("validation_seed = 9", DatasetConfig(validation_split=0.2, validation_seed=7), (0.2, 9)),
    ],
)
def test_the_seed_is_that_of_the_table_else_the_option_else_the_run(
    tmp_path: Path, keys: str, config: DatasetConfig, expected: tuple[float, int]
) -> None:
    found = read(tmp_path, keys, config)
    assert (found.validation_split, found.validation_seed) == expected
