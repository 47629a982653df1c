from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data.images import framing
from sfumato.data.images.buckets import Buckets
from sfumato.data.images.framing import Face, Framing
from tests.data.folders import pixels
from tests.golden.derived import arrays, cases, recorded_parts

CASES = [case for case in cases("c_resize_seed") if case["random_crop"]]
EXPECTED = arrays("c_resize_seed")
SIZE, WINDOW = (900, 600), (256, 192)
FACE = Face(450, 300, 100, 80)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_windows_at_random_lie_where_sd_scripts_puts_them_for_the_same_draws(case: dict) -> None:
    name, (width, height) = case["image"].removeprefix("img:"), case["image_size_wh"]
    original = Image.fromarray(pixels(name, width, height, case["channels"]))
    window = framing.at_random(
        tuple(case["resized"]), tuple(case["bucket"]), random.Random(case["python_seed"])
    )
    shown = np.asarray(window.cut(original))
    assert shown.shape[:2] == tuple(case["bucket"][::-1])
    for ours, recorded in recorded_parts(torch.from_numpy(shown.astype(int)), EXPECTED, case["id"]):
        assert (ours - recorded.long()).abs().max() <= 1


def test_windows_at_random_reach_every_place() -> None:
    rng = random.Random(0)
    corners = {framing.at_random((20, 17), (16, 16), rng).corner for _ in range(300)}
    assert corners == {(left, top) for left in range(5) for top in range(2)}


def test_the_offset_is_the_corner_as_the_mirrored_image_has_it() -> None:
    window = Framing((100, 80), (30, 7), (64, 64))
    assert window.offset(False) == (7, 30)
    assert window.offset(True) == (7, 6)


def test_cutting_a_mirrored_image_at_the_mirrored_offset_gives_the_mirrored_window() -> None:
    noise = pixels("mirror", 100, 80)
    window = Framing((100, 80), (30, 7), (64, 64))
    top, left = window.offset(True)
    mirrored = noise[:, ::-1][top : top + 64, left : left + 64]
    assert np.array_equal(mirrored[:, ::-1], np.asarray(window.cut(Image.fromarray(noise))))


def test_the_middle_is_what_buckets_ask_for() -> None:
    fit = Buckets((64, 64), enabled=False).fit((200, 100))
    assert framing.centred(fit) == Framing((128, 64), (32, 0), (64, 64))


@pytest.mark.parametrize(
    ("path", "face"),
    [
        ("/a_1_2_3_4/photo_0120_0230_0045_0050.png", Face(120, 230, 45, 50)),
        ("a_b_10_20_30_40.webp", Face(10, 20, 30, 40)),
        ("photo_10_20_30.png", None),
        ("10_20_30_40.png", None),
        ("photo_10_20_0_40.png", None),
        ("photo_10_20_30_x.png", None),
    ],
)
def test_faces_are_read_off_file_names(path: str, face: Face | None) -> None:
    assert framing.face_of(path) == face


def test_a_face_has_the_share_of_the_window_that_was_asked_for() -> None:
    rng = random.Random(1)
    scales = [framing.around(FACE, SIZE, WINDOW, (2.0, 4.0), rng).resized[0] / SIZE[0] for _ in range(300)]
    # The window's short side is 192 pixels, the face's long one 100: from 2 to 4 faces, scales 0.96 to 0.48.
    assert 0.47 < min(scales) < 0.5
    assert 0.94 < max(scales) < 0.97
    assert statistics.mean(scales) == pytest.approx(0.72, abs=0.03)


def test_a_face_lies_in_the_middle_if_the_range_leaves_no_choice() -> None:
    window = framing.around(FACE, SIZE, WINDOW, (3.0, 3.0), random.Random(0))
    assert window == Framing((576, 384), (288 - 128, 192 - 96), WINDOW)


def test_a_face_at_the_edge_is_framed_within_the_image() -> None:
    for seed in range(50):
        window = framing.around(
            Face(5, 595, 60, 60), SIZE, WINDOW, (1.5, 5.0), random.Random(seed), wanders=seed % 2 == 0
        )
        assert all(
            0 <= start <= length - side
            for start, length, side in zip(window.corner, window.resized, window.size, strict=True)
        )


def test_a_wandering_face_is_more_often_near_the_middle() -> None:
    rng = random.Random(2)
    windows = [framing.around(FACE, SIZE, WINDOW, (2.0, 2.0), rng, wanders=True) for _ in range(400)]
    middles = [
        (window.corner[0] + WINDOW[0] / 2) / window.resized[0] - FACE.x / SIZE[0] for window in windows
    ]
    assert statistics.stdev(middles) > 0.1
    assert sum(abs(off) < 0.12 for off in middles) > sum(abs(off) > 0.24 for off in middles)


@pytest.mark.parametrize("size", [(100, 80), (257, 193), (3000, 150)])
def test_images_always_cover_the_window_and_are_enlarged_no_more_than_that_takes(
    size: tuple[int, int],
) -> None:
    face = Face(50, 40, 30, 30)
    resized = framing.around(face, size, WINDOW, (2.0, 4.0), random.Random(0)).resized
    assert resized[0] >= WINDOW[0]
    assert resized[1] >= WINDOW[1]
    assert resized[0] / size[0] <= max(1.0, WINDOW[0] / size[0], WINDOW[1] / size[1]) + 0.01
