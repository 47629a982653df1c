from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from sfumato.data import images
from sfumato.data.buckets import Buckets
from sfumato.data.images import BrokenPictureError
from tests.data.folders import GOLDEN, golden, picture, pixels

CASES = golden("c_resize_seed")["cases"]
EXPECTED = load_file(GOLDEN / "c_resize_seed.safetensors")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_resized_and_cropped_pixels_are_within_one_level_of_sd_scripts(case: dict) -> None:
    name = case["image"].removeprefix("img:")
    original = Image.fromarray(pixels(name, *case["image_size_wh"], case["channels"]))
    ours = images.crop(images.resize(original, tuple(case["resized"])), tuple(case["bucket"]))
    difference = np.asarray(ours).astype(int) - EXPECTED[case["id"]]
    assert np.abs(difference).max() <= 1


def test_averaging_keeps_the_mean_of_a_picture() -> None:
    original = pixels("mean", 97, 61)
    small = np.asarray(images.resize(Image.fromarray(original), (31, 17)))
    assert abs(small.mean() - original.mean()) < 0.5


def test_a_tensor_spans_minus_one_to_one() -> None:
    image = Image.fromarray(np.array([[[0, 255, 0]]], dtype=np.uint8))
    assert images.to_tensor(image).flatten().tolist() == [-1, 1, -1]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_the_size_is_read_from_the_header(tmp_path: Path, suffix: str) -> None:
    assert images.read_size(picture(tmp_path / f"a{suffix}", (70, 40))) == (70, 40)


def test_a_photograph_lying_on_its_side_is_set_upright(tmp_path: Path) -> None:
    path = tmp_path / "side.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels("side", 80, 40)).save(path, exif=exif)
    assert images.read_size(path) == (40, 80)
    assert images.decode(path).size == (40, 80)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.fromarray(pixels("mode", 40, 40)).convert(mode).save(path)
    fit = Buckets((32, 32), enabled=False).fit((40, 40))
    assert images.load(path, fit).shape == (3, 32, 32)


@pytest.mark.parametrize(("size", "says"), [(0, "empty"), (10, "not a picture"), (20, "cut short")])
def test_a_damaged_header_is_noticed_without_decoding(tmp_path: Path, size: int, says: str) -> None:
    path = picture(tmp_path / "x.png", (50, 50))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BrokenPictureError, match=says):
        images.read_size(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_a_truncated_picture_is_broken_when_decoded(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"x{suffix}", (80, 80))
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(BrokenPictureError):
        images.decode(path)


def test_loading_equals_decoding_resizing_and_cropping_by_hand(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png", (100, 50))
    fit = Buckets((32, 32), enabled=False).fit((100, 50))
    by_hand = images.to_tensor(images.crop(images.resize(Image.open(path), (64, 32)), (32, 32)))
    assert torch.equal(images.load(path, fit), by_hand)
