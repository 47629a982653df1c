"""What an inpainting model is to repaint, drawn anew for each showing of an image.

A mask is a cloud, a polygon, a rectangle or an ellipse; some clouds are joined with a shape. Each is where a
field is largest, so that the share of the image is repainted that was drawn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.data.images import clouds, shapes
from sfumato.data.images.buckets import Size
from sfumato.data.images.shapes import Field

LEAST, MOST = 0.1, 0.6
"""Share of an image that is repainted."""
JOINED = 0.33
"""Share of clouds that are joined with a shape."""

_GRID = 256
"""Points along the shorter side of a large image that a field is made for; between them it is smooth."""

Kind = Literal["cloud", "polygon", "rectangle", "ellipse"]

_FIELDS = {
    "cloud": clouds.field,
    "polygon": shapes.polygon,
    "rectangle": shapes.rectangle,
    "ellipse": shapes.ellipse,
}
_SHAPES: tuple[tuple[Kind, ...], ...] = (("polygon",), ("rectangle", "ellipse"))
_ALL: tuple[tuple[Kind, ...], ...] = (("cloud",), *_SHAPES)
"""Groups of kinds that are as likely as each other."""


@dataclass(frozen=True)
class Outline:
    """What a mask looks like, but for its place.

    Attributes:
        joined: the kind of a shape within it, for some clouds.
        coverage: share of the image that is repainted, 0 to 1.
    """

    kind: Kind
    joined: Kind | None
    coverage: float


def draw(size: Size, rng: random.Random) -> Tensor:
    """Return a mask for an image of that size (width, height): (1, H, W) bool, True where it is repainted."""
    outline, grain = draw_outline(rng), max(1, min(size) // _GRID)
    field = _field(outline, (size[0] // grain, size[1] // grain), rng)
    level = _level(field, outline.coverage)
    enlarged = np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR))
    return torch.from_numpy(enlarged > level)[None]


def draw_outline(rng: random.Random) -> Outline:
    """Draw what a mask looks like."""
    kind = rng.choice(rng.choice(_ALL))
    is_joined = kind == "cloud" and rng.random() < JOINED
    joined = rng.choice(rng.choice(_SHAPES)) if is_joined else None
    return Outline(kind, joined, rng.uniform(LEAST, MOST))


def _field(outline: Outline, size: Size, rng: random.Random) -> Field:
    field = _FIELDS[outline.kind](size, rng)
    if outline.joined is None:
        return field
    shape = _FIELDS[outline.joined](size, rng)
    share = outline.coverage * rng.uniform(0.25, 0.75)
    return np.where(shape > _level(shape, share), field.max(), field)


def _level(field: Field, share: float) -> float:
    """Return the number that so large a share of a field exceeds."""
    rank = round((1 - share) * (field.size - 1))
    return float(np.partition(field, rank, axis=None)[rank])
