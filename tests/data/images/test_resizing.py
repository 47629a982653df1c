from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data.images.resizing import FILTERS, resize
from tests.data.folders import pixels
from tests.golden.derived import arrays, cases, exists, recorded_parts

CASES = [case for case in cases("c_resize_seed") if not case["random_crop"]]
EXPECTED = arrays("c_resize_seed")
NEWER = arrays("c_resize_head") if exists("c_resize_head") else {}
"""What newer versions make of images that shrink in one direction alone."""

SHRUNK = [
    case
    for case in (cases("c_resize_head") if NEWER else [])
    if not case["random_crop"]
    and any(now < before for now, before in zip(case["resized"], case["image_size_wh"], strict=True))
    and any(now == before for now, before in zip(case["resized"], case["image_size_wh"], strict=True))
    and all(now <= before for now, before in zip(case["resized"], case["image_size_wh"], strict=True))
]


def cut(image: Image.Image, size: list[int]) -> np.ndarray:
    left, top = ((length - side) // 2 for length, side in zip(image.size, size, strict=True))
    return np.asarray(image).astype(int)[top : top + size[1], left : left + size[0]]


def original(case: dict) -> Image.Image:
    name, (width, height) = case["image"].removeprefix("img:"), case["image_size_wh"]
    return Image.fromarray(pixels(name, width, height, case["channels"]))


def levels_apart(ours: np.ndarray, recorded: dict[str, torch.Tensor], case: dict) -> int:
    """Return the largest difference of an image and what is recorded of it."""
    parts = recorded_parts(torch.from_numpy(ours), recorded, case["id"])
    return max(int((a - b.to(a.dtype)).abs().max()) for a, b in parts)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_resized_pixels_are_within_one_level_of_sd_scripts(case: dict) -> None:
    ours = cut(resize(original(case), tuple(case["resized"])), case["bucket"])
    assert levels_apart(ours, EXPECTED, case) <= 1


@pytest.mark.parametrize("case", SHRUNK, ids=lambda case: case["id"])
def test_images_that_shrink_in_one_direction_are_averaged_on_request_as_newer_sd_scripts_do(
    case: dict,
) -> None:
    ours = cut(resize(original(case), tuple(case["resized"]), "area"), case["bucket"])
    assert levels_apart(ours, NEWER, case) <= 1
    assert levels_apart(ours, EXPECTED, case) > 20


def test_averaging_keeps_the_mean_of_an_image() -> None:
    colours = pixels("mean", 97, 61)
    small = np.asarray(resize(Image.fromarray(colours), (31, 17)))
    assert abs(small.mean() - colours.mean()) < 0.5


def test_averaging_enlarges_by_whole_factors_into_blocks() -> None:
    grey = Image.fromarray(np.array([[0, 90], [180, 250]], np.uint8))
    large = np.asarray(resize(grey, (4, 6), "area"))
    assert np.array_equal(large, np.repeat(np.repeat(np.asarray(grey), 3, 0), 2, 1))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("size", [(30, 20), (90, 70), (30, 70)])
def test_every_filter_resizes_every_mode_and_keeps_a_flat_colour(
    interpolation: str, mode: str, size: tuple[int, int]
) -> None:
    flat = Image.new("RGB", (60, 50), (200, 120, 40)).convert(mode)
    resized = resize(flat, size, interpolation)
    assert (resized.size, resized.mode) == (size, mode)
    assert np.abs(np.asarray(resized).astype(int) - np.asarray(flat)[0, 0]).max() <= 1


def test_filters_differ_and_the_two_names_of_one_do_not() -> None:
    noise = Image.fromarray(pixels("filters", 40, 40))
    made = {name: resize(noise, (61, 61), name).tobytes() for name in FILTERS}
    assert made["linear"] == made["bilinear"]
    assert made["cubic"] == made["bicubic"]
    # Enlarged, the nearest pixel is also the one that a box holds.
    assert made["nearest"] == made["box"]
    assert len(set(made.values())) == 5
