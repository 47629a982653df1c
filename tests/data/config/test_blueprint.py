from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.data.partners import PartnerRole
from sfumato.config.run.file import FileConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.config import blueprint
from sfumato.data.config.plan import DatasetPlan, SubsetPlan
from sfumato.data.images.buckets import Buckets
from sfumato.errors import UserError
from tests.data.folders import folder

# The published example of training at several resolutions, as it stands.
SEVERAL_RESOLUTIONS = """
[general]
# define common settings here
flip_aug = true
color_aug = false
keep_tokens_separator= "|||"
shuffle_caption = false
caption_tag_dropout_rate = 0
caption_extension = ".txt"

[[datasets]]
batch_size = 2
enable_bucket = true
resolution = [1024, 1024]

  [[datasets.subsets]]
  image_dir = "path/to/image/dir"
  num_repeats = 1

[[datasets]]
batch_size = 3
enable_bucket = true
resolution = [768, 768]

  [[datasets.subsets]]
  image_dir = "path/to/image/dir"
  num_repeats = 1
"""
SUBSET = '\n[[datasets.subsets]]\nimage_dir = "a"\n'


def plans(
    tmp_path: Path, text: str, *sections: Any, suffix: str = ".toml", **options: Any
) -> list[DatasetPlan]:
    file = tmp_path / f"data{suffix}"
    file.write_text(text, encoding="utf-8")
    return blueprint.plans(run(DatasetConfig(dataset_config=file), *sections), **options)


def run(*sections: Any) -> Run:
    return Run("script", "family", [CaptionConfig(), ImageConfig(), LossConfig(), *sections])


def test_several_resolutions_share_a_folder_with_their_own_batch_sizes(tmp_path: Path) -> None:
    first, second = plans(tmp_path, SEVERAL_RESOLUTIONS, size_multiple=16)
    assert (first.buckets, first.batch_size) == (Buckets((1024, 1024)), 2)
    assert (second.buckets, second.batch_size) == (Buckets((768, 768)), 3)
    (subset,) = second.subsets
    assert (subset.image_dir, subset.flip_aug, subset.caption_extension) == (
        Path("path/to/image/dir"),
        True,
        ".txt",
    )
    assert subset.captions.keep_tokens_separator == "|||"


def test_the_nearest_table_wins_and_false_counts_as_given(tmp_path: Path) -> None:
    text = """
    [general]
    flip_aug = true
    keep_tokens = 1
    [[datasets]]
    resolution = 512
    keep_tokens = 2
    [[datasets.subsets]]
    image_dir = "a"
    flip_aug = false
    keep_tokens = 3
    [[datasets.subsets]]
    image_dir = "b"
    """
    options = CaptionConfig(keep_tokens=9, shuffle_caption=True, caption_extension="txt")
    (found,) = plans(tmp_path, text, options, LossConfig(prior_loss_weight=0.3))
    assert [s.flip_aug for s in found.subsets] == [False, True]
    assert [s.captions.keep_tokens for s in found.subsets] == [3, 2]
    assert [s.captions.shuffle_caption for s in found.subsets] == [True, True]
    assert [s.caption_extension for s in found.subsets] == [".txt", ".txt"]
    assert found.prior_loss_weight == 0.3


def test_json_is_read_like_toml(tmp_path: Path) -> None:
    content = {"datasets": [{"resolution": [64, 96], "subsets": [{"image_dir": "a", "class_tokens": None}]}]}
    (found,) = plans(tmp_path, json.dumps(content), suffix=".JSON")
    assert found.buckets == Buckets((64, 96), enabled=False)


def test_numbers_and_switches_of_front_ends_are_understood(tmp_path: Path) -> None:
    text = (
        "[[datasets]]\nresolution = '64,96'\nbatch_size = 2.0\nenable_bucket = 0\nnetwork_multiplier = 1"
        + SUBSET
    )
    (found,) = plans(tmp_path, text)
    assert found.batch_size == 2
    assert found.buckets.resolution == (64, 96)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[general]\nflip_agu = true", r"\[general\]: unknown key 'flip_agu'; did you mean flip_aug\?"),
        ("[general]\nis_reg = true", r"is_reg does not belong here; put it into \[\[datasets.subsets\]\]"),
        ("general = 3", r"\[general\] is 3; write it as a table"),
        ("[genral]\nflip_aug = true", "'genral' is not known here"),
        ("[datasets]\nresolution = 512", "write it with double brackets"),
        ("[[datasets]]\nresolution = 'big'", "resolution is 'big'; it must be a size in pixels"),
        ("[[datasets]]\nresolution = [1, 2, 3]", "it must be a size in pixels"),
        ("[[datasets]]\nbatch_size = 1.5", "batch_size is 1.5; it must be a whole number"),
        ("[[datasets]]\nbatch_size = 0", "batch_size is 0; use 1 or more"),
        ("[[datasets]]\nenable_bucket = 'yes'", "enable_bucket is 'yes'; it must be true or false"),
        ("[[datasets]]\ncaption_dropout_rate = 30", "caption_dropout_rate is 30; use 1 or less"),
        ("[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dri = 'a'", "did you mean image_dir"),
        (
            "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nnum_repeats = 2",
            "a subset has no image_dir",
        ),
        ("[[datasets]]\nresolution = 512", r"\[\[datasets\]\] 1 has no subsets"),
        ("", r"has no \[\[datasets\]\]"),
        ("[[datasets]]" + SUBSET, "no resolution is given"),
        ("[[datasets]]\nresolution = 100" + SUBSET, "use multiples of 16"),
        (
            "[[datasets]]\nresolution = 512\nenable_bucket = true\nbucket_reso_steps = 24" + SUBSET,
            "multiple of 16",
        ),
        ("[[datasets]]\nresolution = 128\nenable_bucket = true" + SUBSET, "min_bucket_reso 256 exceeds"),
        ("[[datasets]]\nresolution = 2048\nenable_bucket = true" + SUBSET, "max_bucket_reso 1024 is below"),
        (
            "[[datasets]]\nresolution = 512" + SUBSET + "caption_separator = ''\nshuffle_caption = true",
            "caption_separator is empty, and shuffle_caption needs one",
        ),
        ("[[datasets]]\nresolution = inf", "resolution is inf; it must be a size in pixels"),
        ("[[datasets]]\nbatch_size = inf", "batch_size is inf; it must be a whole number"),
        ("[[datasets]]\ncaption_dropout_rate = nan", "caption_dropout_rate is nan; it must be a number"),
        ("[general]\nface_crop_aug_range = [1, inf]", "it must be two numbers above 0"),
        (
            '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "a\\u0000b"',
            "it must be a path in quotes",
        ),
        ("[general]\nmax_token_length = 150", "'max_token_length'; give it as --max_token_length"),
        ("[[datasets]]\nresolution =", "data.toml is not valid toml: Invalid value"),
        ("[[datasets]]\nimage_dir = 'C:\\x'\ncaption_prefix = \"\\d\"", "so write paths in single ones"),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a\\new"', "in single ones if it has a backslash"),
        ("train_data_dir = 'a'", "holds options of a run; give it as --config_file"),
        ("[[datasets]]\nresolution = 512" + SUBSET + "num_repeats = 1000000000", "use 100000 or less"),
    ],
)
def test_a_mistake_is_named_with_file_and_table(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        plans(tmp_path, text, size_multiple=16)
    assert "data.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", r'holds no object; write \{"datasets"'),
        ("null", "holds no object"),
        ("[" * 100_000, "is not valid json"),
        ('{"datasets": [3]}', r"\[\[datasets\]\] 1 is 3; write it as a table"),
    ],
)
def test_json_of_another_shape_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        plans(tmp_path, text, suffix=".json")
    assert "data.json" in str(caught.value)


def test_notes_about_subsets_are_kept_and_the_nearest_table_counts(tmp_path: Path) -> None:
    text = "[general.custom_attributes]\na = 1\n" + described(
        "image_dir = 'a'\ncustom_attributes = { source = 'x', parts = [1, 2] }", "image_dir = 'b'"
    )
    (found,) = plans(tmp_path, text)
    assert [s.custom_attributes for s in found.subsets] == [{"source": "x", "parts": [1, 2]}, {"a": 1}]


def described(*subsets: str, own: str = "resolution = 512") -> str:
    return "\n".join(["[[datasets]]", own, *(f"[[datasets.subsets]]\n{subset}" for subset in subsets)])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            described("metadata_file = 'm.json'\nis_reg = true"),
            r"\[\[datasets.subsets\]\] 1: is_reg belongs to plain folders of images; here are subsets with "
            "metadata_file",
        ),
        (
            described("image_dir = 'a'\nconditioning_data_dir = 'b'\nalpha_mask = true"),
            "alpha_mask belongs to plain folders of images and subsets with metadata_file and",
        ),
        (
            described("metadata_file = 'm.json'\nconditioning_data_dir = 'b'"),
            "conditioning_data_dir belongs to subsets with a folder of masks and",
        ),
        (
            described("metadata_file = 'm.json'", own="resolution = 512\nclass_tokens = 'cat'"),
            r"\[\[datasets\]\] 1: class_tokens belongs to",
        ),
        (described("metadata_file = 'm.json'", "image_dir = 'a'"), "put them into .* of their own"),
        (described("image_dir = 'a'\nresize_interpolation = 'bikubic'"), "must be one of lanczos, nearest"),
        (described("image_dir = ''"), "image_dir is ''; it must be a path"),
    ],
)
def test_a_key_of_another_kind_of_subset_is_said_to_be(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        plans(tmp_path, text, LossConfig(masked_loss=True))
    assert "data.toml" in str(caught.value)


def test_partners_are_read_for_a_masked_loss_alone(tmp_path: Path) -> None:
    text = described("image_dir = 'a'\nconditioning_data_dir = 'b'", "image_dir = 'a'")
    with pytest.raises(UserError, match="conditioning_data_dir needs --masked_loss"):
        plans(tmp_path, text)
    (found,) = plans(tmp_path, text, LossConfig(masked_loss=True))
    assert [subset.mask_dir for subset in found.subsets] == [Path("b"), None]


def of_role(tmp_path: Path, text: str, role: PartnerRole) -> list[SubsetPlan]:
    """Return the subsets that a script for which `conditioning_data_dir` has this role would read."""
    file = tmp_path / "data.toml"
    file.write_text(text, encoding="utf-8")
    sections = run(DatasetConfig(dataset_config=file), LossConfig(masked_loss=True))
    (found,) = blueprint.plans(Run("train_x", "sd", sections, conditioning_role=role))
    return list(found.subsets)


@pytest.mark.parametrize(
    ("keys", "role", "folders"),
    [
        ("conditioning_data_dir = 'b'", "mask", (Path("b"), None)),
        ("conditioning_data_dir = 'b'", "control", (None, Path("b"))),
        ("conditioning_data_dir = 'b'\nmask_dir = 'c'", "control", (Path("c"), Path("b"))),
        ("control_dir = 'b'\nmask_dir = 'c'", "control", (Path("c"), Path("b"))),
    ],
)
def test_each_folder_of_partners_has_the_role_that_its_key_or_its_script_gives(
    tmp_path: Path, keys: str, role: PartnerRole, folders: tuple[Path | None, Path | None]
) -> None:
    (found,) = of_role(tmp_path, described(f"image_dir = 'a'\n{keys}"), role)
    assert (found.mask_dir, found.control_dir) == folders


@pytest.mark.parametrize(
    ("keys", "role", "says"),
    [
        ("mask_dir = 'b'\nconditioning_data_dir = 'c'", "mask", "mask_dir both name a folder of masks"),
        (
            "control_dir = 'b'\nconditioning_data_dir = 'c'",
            "control",
            "control_dir both name a folder of",
        ),
        ("mask_dir = 'b'", "control", "a subset has no control_dir; name the folder"),
        ("control_dir = 'b'", "mask", "control_dir has no use in train_x"),
        ("control_dir = 'b'\nis_reg = true", "control", "is_reg belongs to plain folders of images"),
        ("mask_dir = 'b'\nalpha_mask = true", "mask", "here are subsets with a folder of masks"),
    ],
)
def test_a_role_that_is_given_twice_or_not_wanted_is_one_clear_error(
    tmp_path: Path, keys: str, role: PartnerRole, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        of_role(tmp_path, described(f"image_dir = 'a'\n{keys}"), role)


def test_a_folder_that_is_called_masks_needs_no_masked_loss(tmp_path: Path) -> None:
    (found,) = plans(tmp_path, described("image_dir = 'a'\nmask_dir = 'b'"))
    assert found.subsets[0].mask_dir == Path("b")


def test_what_means_nothing_to_any_subset_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "[general]\nclass_tokens = 'cat'\n" + described("metadata_file = 'm.json'")
    (found,) = plans(tmp_path, text)
    assert found.subsets[0].class_tokens is None
    assert "class_tokens has no effect on subsets with metadata_file" in caplog.text


def test_in_json_is_one_subset_with_the_repeats_of_the_command_line() -> None:
    where = DatasetConfig(train_data_dir="images", in_json="m.json", dataset_repeats=3)
    (found,) = blueprint.plans(run(where, ImageConfig(resolution="64")))
    (only,) = found.subsets
    assert (only.metadata_file, only.image_dir, only.num_repeats) == (Path("m.json"), Path("images"), 3)
    assert only.name == "m.json"


def test_a_flat_folder_with_partners_is_one_subset(tmp_path: Path) -> None:
    folder(tmp_path / "train", [(40, 40)])
    where = DatasetConfig(train_data_dir=str(tmp_path / "train"), conditioning_data_dir="masks")
    (found,) = blueprint.plans(run(where, ImageConfig(resolution="64"), LossConfig(masked_loss=True)))
    (only,) = found.subsets
    assert (only.image_dir, only.mask_dir) == (tmp_path / "train", Path("masks"))


def test_numbered_folders_are_paired_with_folders_of_the_same_name(tmp_path: Path) -> None:
    for name in ("train/2_cat", "train/1_dog", "masks/2_cat", "reg/1_cat"):
        folder(tmp_path / name, [(40, 40)])
    where = DatasetConfig(
        train_data_dir=str(tmp_path / "train"),
        reg_data_dir=str(tmp_path / "reg"),
        conditioning_data_dir=str(tmp_path / "masks"),
    )
    (found,) = blueprint.plans(run(where, ImageConfig(resolution="64"), LossConfig(masked_loss=True)))
    shown = {s.name: s.mask_dir for s in found.subsets if not s.is_reg}
    assert shown == {"2_cat": tmp_path / "masks" / "2_cat", "1_dog": tmp_path / "masks"}
    assert [s.mask_dir for s in found.subsets if s.is_reg] == [None]
    assert {s.name: s.class_tokens for s in found.subsets}["2_cat"] == "cat"


def test_augmentation_and_masks_reach_the_subsets_that_ask_for_them(tmp_path: Path) -> None:
    general = "[general]\nresolution = 512\ncolor_aug = true\nface_crop_aug_range = [2.0, 4.0]\n[[datasets]]"
    asked = "random_crop = true\nalpha_mask = true\nresize_interpolation = 'area'\ncolor_aug = false"
    (found,) = plans(tmp_path, general + SUBSET + asked + SUBSET.replace('"a"', '"b"'))
    first, second = found.subsets
    assert (first.random_crop, first.alpha_mask, first.color_aug) == (True, True, False)
    assert (second.random_crop, second.alpha_mask, second.color_aug) == (False, False, True)
    assert (first.resize_interpolation, second.resize_interpolation) == ("area", None)
    assert first.face_crop_aug_range == second.face_crop_aug_range == (2.0, 4.0)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("face_crop_aug_range = [4.0, 2.0]", "two numbers above 0, the smaller first"),
        ("face_crop_aug_range = [0, 2.0]", "two numbers above 0, the smaller first"),
        ("resize_interpolation = 'sharp'", "must be one of lanczos, nearest"),
    ],
)
def test_values_of_augmentation_are_checked(tmp_path: Path, key: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        plans(tmp_path, "[[datasets]]\nresolution = 512" + SUBSET + key)


@pytest.mark.parametrize("step", [1, 4])
def test_steps_finer_than_the_model_takes_are_the_finest_that_it_takes(
    step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"[[datasets]]\nresolution = 512\nenable_bucket = true\nbucket_reso_steps = {step}"
    (found,) = plans(tmp_path, text + SUBSET)
    assert found.buckets.step == 8
    assert f"bucket_reso_steps is {step}; the model needs multiples of 8" in caplog.text


def test_limits_are_rounded_to_the_steps_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "[[datasets]]\nresolution = 512\nenable_bucket = true\nmin_bucket_reso = 300\nmax_bucket_reso = 1000"
    )
    (found,) = plans(tmp_path, text + SUBSET)
    assert (found.buckets.min_size, found.buckets.max_size) == (256, 1024)
    assert "become 256, 1024" in caplog.text


def test_a_folder_named_twice_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (found,) = plans(tmp_path, "[[datasets]]\nresolution = 512" + SUBSET + SUBSET)
    assert len(found.subsets) == 1
    assert "named twice" in caplog.text


def test_folders_on_the_command_line_are_ignored_beside_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "data.toml"
    file.write_text("[[datasets]]\nresolution = 512" + SUBSET)
    blueprint.plans(run(DatasetConfig(dataset_config=file, train_data_dir="x")))
    assert "--train_data_dir is ignored" in caplog.text


def test_numbered_sub_folders_are_subsets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path / "train" / "10_sks cat_x", [(40, 40)])
    folder(tmp_path / "train" / "notes", [(40, 40)])
    folder(tmp_path / "reg" / "1_cat", [(40, 40)])
    where = DatasetConfig(
        train_data_dir=str(tmp_path / "train"), reg_data_dir=str(tmp_path / "reg"), train_batch_size=3
    )
    (found,) = blueprint.plans(run(where, ImageConfig(resolution="64,96", flip_aug=True)))
    train, reg = found.subsets
    assert (train.num_repeats, train.class_tokens, train.is_reg, train.flip_aug) == (
        10,
        "sks cat_x",
        False,
        True,
    )
    assert (reg.num_repeats, reg.class_tokens, reg.is_reg) == (1, "cat", True)
    assert found.batch_size == 3
    assert found.buckets.resolution == (64, 96)
    assert "notes ignored" in caplog.text
    with pytest.raises(UserError, match="notes ignored"):
        blueprint.plans(run(where, ImageConfig(resolution="64"), FileConfig(strict=True)))


def test_images_outside_a_numbered_sub_folder_get_advice(tmp_path: Path) -> None:
    folder(tmp_path / "train", [(40, 40)])
    with pytest.raises(UserError, match="no sub-folder named <repeats>_<class>; move its images into one"):
        blueprint.plans(run(DatasetConfig(train_data_dir=str(tmp_path / "train"))))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (DatasetConfig(), "no training data is given"),
        (DatasetConfig(train_data_dir="/nowhere"), "--train_data_dir /nowhere cannot be read: No such file"),
        (DatasetConfig(dataset_config=Path("/nowhere.toml")), "/nowhere.toml cannot be read: No such file"),
        (DatasetConfig(dataset_config=Path("/nowhere.yaml")), "use a .toml or .json file"),
        (DatasetConfig(train_data_dir="x", in_json="x", conditioning_data_dir="x"), "--in_json excludes"),
    ],
)
def test_missing_data_is_one_clear_line(config: DatasetConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        blueprint.plans(run(config))
