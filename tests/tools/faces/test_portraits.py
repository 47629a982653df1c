"""Portraits are turned, resized and cut out as asked, and say where the face is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.config.tools.pictures.faces import FacesConfig
from sfumato.data.images.images import read_size
from sfumato.tools.faces import boxes, detector
from sfumato.tools.faces.cutting import cut_faces, portrayed, turned
from sfumato.tools.faces.detector import Face

FACE = Face((40, 20, 60, 50), ((44, 30), (56, 36)), 0.99)


def options(**values: object) -> FacesConfig:
    return FacesConfig(src_dir="images", dst_dir="faces", **values)


def has(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.parametrize(
    ("values", "size", "position"),
    [
        ({}, (100, 80), "0050_0035_0020_0030"),
        ({"crop_size": "40,40"}, (40, 40), "0020_0020_0020_0030"),
        ({"crop_size": "80,80"}, (80, 80), "0040_0035_0020_0030"),
        ({"crop_size": "200,80"}, (200, 80), "0100_0040_0040_0060"),
        ({"crop_size": "50,50", "resize_fit": True}, (50, 50), "0025_0022_0013_0019"),
        ({"crop_size": "40,40", "resize_face_size": 60}, (40, 40), "0020_0020_0040_0060"),
        ({"crop_size": "90,90", "resize_face_size": 15}, (90, 90), "0045_0039_0023_0034"),
        ({"crop_ratio": "2,1"}, (60, 30), "0030_0015_0020_0030"),
    ],
)
def test_portraits_are_resized_and_cut_out(values: dict, size: tuple[int, int], position: str) -> None:
    portrait = portrayed(Image.new("RGB", (100, 80)), FACE, options(**values))
    assert portrait.image.size == size
    assert portrait.position == position


def test_eyes_are_level_after_turning() -> None:
    pixels = np.zeros((80, 100, 3), np.uint8)
    for x, y in FACE.eyes:
        pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
    level = np.asarray(turned(Image.fromarray(pixels), FACE.angle, (50, 33)))[:, :, 0].astype(float)
    rows = [(half.sum(axis=1) * np.arange(80)).sum() / half.sum() for half in (level[:, :50], level[:, 50:])]
    assert FACE.angle == pytest.approx(26.565, abs=1e-3)
    assert rows[0] == pytest.approx(rows[1], abs=0.7)
    grey = turned(Image.new("RGB", (30, 20), (9, 9, 9)), 30, (3, 3))
    assert np.asarray(grey).min() == 9, "mirrored at the borders, not black"


def test_the_best_of_overlapping_boxes_is_kept() -> None:
    found = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [4, 4, 6, 6], [20, 20, 30, 30]], float)
    scores = np.array([0.8, 0.9, 0.7, 0.6])
    assert boxes.distinct(found, scores, 0.5).tolist() == [1, 2, 3]
    assert boxes.distinct(found, scores, 0.5, of_smaller=True).tolist() == [1, 3]


@pytest.mark.skipif(
    not has(detector.PACKAGE) or importlib.util.find_spec("onnxruntime") is None,
    reason="the networks are in another package: extra [faces]",
)
def test_a_face_is_found_where_it_is(tmp_path: Path) -> None:
    from skimage import data

    astronaut = Image.fromarray(data.astronaut())
    astronaut.save(tmp_path / "woman.png")
    (face,) = detector.find_faces(astronaut)
    assert face.box == pytest.approx((178, 60, 267, 174), abs=3)
    assert face.angle == pytest.approx(2.2, abs=1)
    asked = FacesConfig(
        src_dir=str(tmp_path), dst_dir=str(tmp_path / "faces"), rotate=True, crop_size="256,256"
    )
    cut_faces(asked)
    (made,) = (tmp_path / "faces").iterdir()
    assert made.name == "woman_0128_0116_0089_0113.png"
    assert read_size(made) == (256, 256)
