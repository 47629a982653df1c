from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.batches import dataset, statistics
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.config import blueprint
from sfumato.data.config.metadata_records import Record
from sfumato.data.images.images import BrokenImageError
from sfumato.data.sources import latent_only_images, metadata_file
from sfumato.errors import UserError
from tests.data.folders import folder, image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images: im0 and im1 64x64, im2 96x48."""
    return folder(tmp_path / "images", [(64, 64), (64, 64), (96, 48)])


def read(
    tmp_path: Path, entries: Any, *, name: str = "m.json", strict: bool = True, **images: Any
) -> TrainingSet:
    file = tmp_path / name
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
    where = DatasetConfig(train_data_dir=str(tmp_path / "images"), in_json=str(file))
    sections = [where, CaptionConfig(), LossConfig(), ImageConfig(**{"resolution": "64", **images})]
    run = Run("script", "family", sections)
    return dataset.read(blueprint.plans(run), seed=1, strict=strict)


def captions(training_set: TrainingSet) -> dict[str, str]:
    return {Path(p.path).name: p.caption for p in training_set.sets[0].images}


def test_keys_are_stems_file_names_or_paths(tmp_path: Path, images: Path) -> None:
    entries = {
        "im0": {"caption": "a"},
        "im1.png": {"tags": "b, c"},
        str(images / "im2.png"): {"caption": "d"},
    }
    found = captions(read(tmp_path, entries))
    assert found == {"im0.png": "a", "im1.png": "b, c", "im2.png": "d"}


def test_a_file_with_an_object_a_line_names_paths(tmp_path: Path, images: Path) -> None:
    lines = [{"image_path": str(images / f"im{i}.png"), "caption": f"c{i}", "tags": "x"} for i in (0, 2)]
    text = "\n".join(map(json.dumps, lines)) + "\n"
    assert captions(read(tmp_path, text, name="m.jsonl")) == {"im0.png": "c0,x", "im2.png": "c2,x"}


@pytest.mark.parametrize(
    ("record", "wildcards", "expected"),
    [
        (Record("a cat", "red, blue"), False, "a cat,red, blue"),
        (Record("a cat", ""), False, "a cat"),
        (Record("", "red, blue"), False, "red, blue"),
        (Record(), False, ""),
        (Record("first\nsecond", "red"), False, "first,red"),
        (Record("first\n\nsecond\n", "red\nblue"), True, "first,red,blue\nsecond,red,blue"),
        (Record("", "red\nblue"), True, "red,blue"),
    ],
)
def test_tags_follow_the_caption(record: Record, wildcards: bool, expected: str) -> None:
    assert record.text(CaptionSettings(enable_wildcard=wildcards)) == expected


def test_sizes_given_for_every_image_are_its_buckets(tmp_path: Path, images: Path) -> None:
    sizes = {"im0": [64, 64], "im1": [48, 80], "im2": [128, 64]}
    entries = {key: {"caption": key, "train_resolution": size} for key, size in sizes.items()}
    training_set = read(tmp_path, entries, resolution=None)
    (images_read,) = training_set.sets
    assert sorted(images_read.buckets) == [(48, 80), (64, 64), (128, 64)]
    assert images_read.fit(1).resized == (80, 80)
    (record,) = training_set.describe()
    assert record["resolution"] == [128, 64]
    assert [bucket["resolution"] for bucket in record["bucket_info"]["buckets"].values()] == [
        *([48, 80], [64, 64], [128, 64])
    ]
    batch = training_set[next(p for p in training_set.batches(1) if p.items[0].image == 1)]
    assert batch.pixels is not None
    assert tuple(batch.pixels.shape) == (1, 3, 80, 48)


def test_given_sizes_are_rounded_down_to_what_the_model_takes(tmp_path: Path, images: Path) -> None:
    training_set = read(tmp_path, {"im0": {"caption": "x", "train_resolution": [70, 65]}})
    assert list(training_set.sets[0].buckets) == [(64, 64)]
    alone = read(tmp_path, {"im0": {"caption": "x", "train_resolution": [70, 65]}}, resolution=None)
    assert list(alone.sets[0].buckets) == [(64, 64)]


@pytest.mark.parametrize("resolution", ["64", None])
def test_buckets_of_the_images_sizes_exclude_given_sizes(
    tmp_path: Path, images: Path, resolution: str | None
) -> None:
    entries = {"im0": {"caption": "x", "train_resolution": [64, 64]}}
    with pytest.raises(UserError, match=r"bucket_no_upscale makes buckets .*m.json says train_resolution"):
        read(tmp_path, entries, resolution=resolution, bucket_no_upscale=True)


def test_sizes_given_for_some_images_only_do_not_count(tmp_path: Path, images: Path) -> None:
    entries = {"im0": {"caption": "x", "train_resolution": [128, 128]}, "im1": {"caption": "y"}}
    assert list(read(tmp_path, entries).sets[0].buckets) == [(64, 64)]
    with pytest.raises(UserError, match="no resolution is given"):
        read(tmp_path, entries, resolution=None)


def test_missing_images_and_captions_are_one_line_each(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = {"im0": {"caption": "x"}, "im1": {}, "gone": {"caption": "y"}, "lost": {"caption": "z"}}
    assert captions(read(tmp_path, entries, strict=False)) == {"im0.png": "x", "im1.png": ""}
    file = tmp_path / "m.json"
    assert [record.getMessage() for record in caplog.records] == [
        f"2 of 4 images in {file} are not in {images} and left out, the first is 'gone'",
        f"1 of 4 images in {file} has neither caption nor tags: trained without a "
        "caption, the first is 'im1'",
    ]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ("{", "is not valid JSON: "),
        ("{}", "describes no images"),
        ("[1]", "describes no images"),
        ('{"im0": 3}', r"'im0' is 3; it should be an object"),
        ('{"im0": {"caption": 3}}', "'im0': caption is 3; it must be a text"),
        ('{"im0": {"train_resolution": "64"}}', r"train_resolution is '64'; it must be \[width, height\]"),
        ('{"im0": {"train_resolution": [64, 0]}}', r"train_resolution is \[64, 0\]"),
    ],
)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, images: Path, entries: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path, entries)
    assert "m.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    where = DatasetConfig(in_json=str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"metadata_file .*none\.json cannot be read: No such file"):
        blueprint.plans(Run("script", "family", [where, CaptionConfig(), ImageConfig(), LossConfig()]))


def test_the_record_of_a_data_set_names_the_file(tmp_path: Path, images: Path) -> None:
    image(images / "im0.png", (64, 64), "not this")
    training_set = read(tmp_path, {"im0": {"caption": "a cat", "tags": "Red, blue"}})
    (record,) = training_set.describe()
    assert record["is_dreambooth"] is False
    (subset,) = record["subsets"]
    assert (subset["image_dir"], subset["metadata_file"]) == ("images", "m.json")
    assert {"class_tokens", "is_reg"} & subset.keys() == set()
    assert record["tag_frequency"] == {"m.json": {"a cat": 1, "red": 1, "blue": 1}}
    dirs = statistics.folders(training_set.sets, is_reg=False)
    assert dirs == {"m.json": {"n_repeats": 1, "img_count": 1}}


def test_latents_stand_in_for_images_where_they_are_taken(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("one.npz", "two.npz", "two.png", "deep/three.npz"):
        (tmp_path / name).write_bytes(b"")
    find = metadata_file.Finder(tmp_path)
    assert find("one") is None
    assert find("one", takes_latents=True) == str(tmp_path / "one.npz")
    assert find("one.jpg", takes_latents=True) == str(tmp_path / "one.npz")
    assert find("two", takes_latents=True) == str(tmp_path / "two.png"), "the image itself is better"
    key = str(tmp_path / "deep" / "three.webp")
    assert find(key, takes_latents=True) == str(tmp_path / "deep" / "three.npz")
    assert find("four", takes_latents=True) is None
    for name in ("four_0064x1024_sd.npz", "one_0064x0064_sd.npz", "five_0064x0064_sdxl.npz"):
        (tmp_path / name).write_bytes(b"")
    find = metadata_file.Finder(tmp_path, "_sd.npz")
    assert find("four.png", takes_latents=True) == str(tmp_path / "four_0064x1024_sd.npz")
    assert find("one", takes_latents=True) == str(tmp_path / "one.npz"), "whose size is in it"
    assert find("five", takes_latents=True) is None
    assert latent_only_images.image_of("a/four_0064x1024_sd.npz", (64, 1024)) == "a/four.npz"
    assert latent_only_images.image_of("a/four.npz", (64, 1024)) == "a/four.npz"


def test_files_that_hold_no_latents_are_named_and_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", latents=np.zeros((4, 8, 10)), original_size=np.array([90, 70]))
    np.savez(tmp_path / "texts.npz", hidden=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    assert latent_only_images.read_header(str(tmp_path / "good.npz")).size == (90, 70)
    for name, says in (("texts", "no latents"), ("broken", "cannot be read"), ("gone", "cannot be read")):
        with pytest.raises(BrokenImageError, match=says):
            latent_only_images.read_header(str(tmp_path / f"{name}.npz"))
