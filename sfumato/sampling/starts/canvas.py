"""What is to be painted: an image, and where it is repainted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.data.images import framing, images, inpaint_masks, masks
from sfumato.data.images.buckets import covering
from sfumato.data.images.images import BrokenImageError
from sfumato.errors import UserError
from sfumato.sampling.request import Request

Read = TypeVar("Read")


class Canvas(NamedTuple):
    """An image (1, 3, H, W) in [-1, 1], and its mask (1, 1, H, W) in [0, 1]: 1 where it is repainted."""

    pixels: Tensor
    mask: Tensor

    @property
    def repainted(self) -> Tensor:
        """Where the image is repainted, (1, 1, H, W) bool."""
        return self.mask >= 0.5


def check(request: Request) -> None:
    """Raise UserError if a request names an image, or one of masks or regions, that is none."""
    for path in filter(None, (request.image, request.mask, request.regions and request.regions.mask)):
        _read(images.read_header, path)


def canvas_for(request: Request, *, draws_mask: bool) -> Canvas:
    """Return what a request asks to be painted: everything, where it names no image.

    The image is resized to cover the size that is asked for, and cut in the middle; its mask likewise, of
    which white is repainted.

    Args:
        draws_mask: draw a mask of the seed where the request names none, as in training; otherwise
            everything is repainted.

    Raises:
        UserError: a file is damaged.
    """
    size = request.width, request.height
    everything = torch.ones(1, 1, request.height, request.width)
    if request.image is None:
        return Canvas(torch.zeros(1, 3, request.height, request.width), everything)
    image = _read(images.decode, request.image)
    window = framing.centred(covering(size, image.size))
    pixels = images.to_tensor(window.cut(image))[None]
    if request.mask is not None:
        mask = masks.to_tensor(window.cut(_read(masks.decode_mask, request.mask)))[None]
        return Canvas(pixels, mask)
    if not draws_mask:
        return Canvas(pixels, everything)
    return Canvas(pixels, inpaint_masks.draw(size, random.Random(request.seed))[None].float())


def kept(canvas: Canvas, size: Sequence[int]) -> Tensor:
    """Return how much of each latent pixel stays as it is, (1, 1, H/8, W/8) in [0, 1].

    Args:
        size: (H/8, W/8).
    """
    small = functional.interpolate(canvas.mask, tuple(size), mode="bilinear", antialias=True)
    return 1 - small


def pasted(made: Tensor, canvas: Canvas) -> Tensor:
    """Return pixels (1, 3, H, W) of what was made, (3, H, W), with what the mask keeps put back."""
    mask = canvas.mask.to(made)
    return made * mask + canvas.pixels.to(made) * (1 - mask)


def _read(read: Callable[[str], Read], path: str) -> Read:
    try:
        return read(path)
    except BrokenImageError as error:
        raise UserError(f"{path} cannot be read as an image: {error}; check the path") from None
