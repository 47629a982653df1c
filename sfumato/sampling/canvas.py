"""What an inpainting model is to fill: an image, and where it is repainted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sfumato.data.images import framing, images, inpaint_masks, masks
from sfumato.data.images.buckets import covering
from sfumato.data.images.images import BrokenImageError
from sfumato.errors import UserError
from sfumato.models.interface.family import Family, is_inpainting
from sfumato.sampling.request import Request

Read = TypeVar("Read")


class Canvas(NamedTuple):
    """An image (1, 3, H, W) in [-1, 1], and its mask (1, 1, H, W) bool: True where it is repainted."""

    pixels: Tensor
    mask: Tensor


def check(request: Request, family: Family) -> None:
    """Raise UserError if a request names an image that the model does not look at, or that is none."""
    if request.image is None:
        return
    if not is_inpainting(family):
        raise UserError(
            f"image is {request.image}, and the model repaints none; take an inpainting model, or leave "
            "the image out"
        )
    for path in filter(None, (request.image, request.mask)):
        _read(images.read_header, path)


def canvas_for(request: Request) -> Canvas:
    """Return what a request asks to be filled: everything, where it names no image.

    The image is resized to cover the size that is asked for, and cut in the middle; its mask likewise, of
    which white is repainted. Where there is no mask, one is drawn of the seed, as in training.

    Raises:
        UserError: a file is damaged.
    """
    size = request.width, request.height
    if request.image is None:
        blank = torch.zeros(1, 3, request.height, request.width)
        return Canvas(blank, torch.ones_like(blank[:, :1], dtype=torch.bool))
    image = _read(images.decode, request.image)
    window = framing.centred(covering(size, image.size))
    pixels = images.to_tensor(window.cut(image))
    if request.mask is None:
        mask = inpaint_masks.draw(size, random.Random(request.seed))
    else:
        mask = masks.to_tensor(window.cut(_read(masks.decode_mask, request.mask))) >= 0.5
    return Canvas(pixels[None], mask[None])


def _read(read: Callable[[str], Read], path: str) -> Read:
    try:
        return read(path)
    except BrokenImageError as error:
        raise UserError(f"{path} cannot be read as an image: {error}; check the path") from None
