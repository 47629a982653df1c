"""One showing of an image: its window, its colours, whether it is mirrored, its mask and control image."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from sfumato.data.config.plan import SubsetPlan
from sfumato.data.images import colour, framing, images, masks
from sfumato.data.images.buckets import Fit, Size, crop_offset
from sfumato.data.images.colour import Tint
from sfumato.data.images.framing import Framing
from sfumato.data.images.masks import MaskSource


@dataclass(frozen=True)
class ImageView:
    """How an image is shown.

    Attributes:
        offset: the window's (top, left) as models that are told about cropping expect it.
        interpolation: filter for resizing; see `resizing.FILTERS`.
    """

    framing: Framing
    offset: tuple[int, int]
    flipped: bool = False
    tint: Tint | None = None
    interpolation: str | None = None


def plain(size: Size, fit: Fit, *, flipped: bool = False, interpolation: str | None = None) -> ImageView:
    """Return the view of an image of that size that does not vary, but for being mirrored."""
    offset = crop_offset(fit.bucket, size, flipped)
    return ImageView(framing.centred(fit), offset, flipped, interpolation=interpolation)


def draw(
    path: str, size: Size, fit: Fit, subset: SubsetPlan, rng: random.Random, *, flipped: bool, own_size: bool
) -> ImageView:
    """Draw a view as the subset wants its images varied.

    Args:
        own_size: whether windows at random are cut out of the image as it is, where it is large enough.
    """
    window = _window(path, size, fit, subset, rng, own_size=own_size)
    tint = colour.draw(rng) if subset.color_aug else None
    if window is None:
        window, offset = framing.centred(fit), crop_offset(fit.bucket, size, flipped)
    else:
        offset = window.offset(flipped)
    return ImageView(window, offset, flipped, tint, subset.resize_interpolation)


def render(path: str, view: ImageView, mask: MaskSource | None = None) -> tuple[Tensor, Tensor | None]:
    """Return an image as trained, (3, H, W) in [-1, 1], and its mask, (1, H, W) in [0, 1], if it has one.

    Raises:
        BrokenImageError: the image or its mask is damaged.
    """
    has_alpha = mask is not None and mask.is_alpha
    image = images.decode(path, alpha=has_alpha, at_least=view.framing.resized)
    image = view.framing.cut(image, view.interpolation)
    shown = None if mask is None else _mirrored(masks.to_tensor(_grey(image, view, mask)), view.flipped)
    image = image.convert("RGB")
    pixels = images.to_tensor(view.tint(image) if view.tint else image)
    return _mirrored(pixels, view.flipped), shown


def render_control(path: str, view: ImageView) -> Tensor:
    """Return a control image pixel for pixel as its image is shown, (3, H, W) in [-1, 1]; its colours stay.

    Raises:
        BrokenImageError: it is damaged.
    """
    image = view.framing.cut(images.decode(path, at_least=view.framing.resized), view.interpolation)
    return _mirrored(images.to_tensor(image), view.flipped)


def _grey(image: Image.Image, view: ImageView, mask: MaskSource) -> Image.Image:
    """Return the mask of an image that is resized and cut already, and its transparency with it."""
    if mask.path is None:
        return image.getchannel("A")
    return view.framing.cut(masks.decode_mask(mask.path), view.interpolation)


def _window(
    path: str, size: Size, fit: Fit, subset: SubsetPlan, rng: random.Random, *, own_size: bool
) -> Framing | None:
    """Return a window that is drawn, or None where it is the usual one in the middle."""
    if subset.face_crop_aug_range and (face := framing.face_of(path)):
        return framing.around(
            face, size, fit.bucket, subset.face_crop_aug_range, rng, wanders=subset.random_crop
        )
    if not subset.random_crop:
        return None
    covers = size[0] >= fit.bucket[0] and size[1] >= fit.bucket[1]
    return framing.at_random(size if own_size and covers else fit.resized, fit.bucket, rng)


def _mirrored(tensor: Tensor, flipped: bool) -> Tensor:
    return tensor.flip(-1) if flipped else tensor
