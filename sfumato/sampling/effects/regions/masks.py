"""Where regions are: one mask for each, in the size of whatever features it multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sfumato.data.images import images
from sfumato.data.images.images import BrokenImageError
from sfumato.errors import UserError

NUM_CHANNELS = 3
"""Red, green and blue say where the first three regions are."""


class Masks:
    """The masks of an image's regions.

    Args:
        full: (n, H, W) in [0, 1], one for each region, in the size of the image.
    """

    def __init__(self, full: Tensor) -> None:
        self._full = full[:, None]
        self._resized: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def __len__(self) -> int:
        return len(self._full)

    def at(self, size: Sequence[int], like: Tensor) -> Tensor:
        """Return the masks (n, h, w) in the size of features, with the dtype and on the device of `like`."""
        height, width = size
        key = height, width, like.device, like.dtype
        if key not in self._resized:
            small = functional.interpolate(self._full, (height, width), mode="bilinear")
            self._resized[key] = small[:, 0].to(like.device, like.dtype)
        return self._resized[key]


def read_masks(path: Path, size: tuple[int, int], num: int, num_colors: int | None = None) -> Tensor:
    """Return masks (num, H, W) in [0, 1] of an image that is painted with regions.

    Without `num_colors`, a channel of the image is a mask: red is the first region, green the second and blue
    the third. A region without a channel or a color is the whole image, and so is one that is empty.

    Args:
        size: (width, height) in pixels.
        num: of regions.
        num_colors: region i below it is where the color is exactly that of the bits of i + 1: bit 0 red,
            bit 1 green, bit 2 blue.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        painted = images.decode(str(path)).convert("RGB")
    except BrokenImageError as error:
        raise UserError(f"{path} cannot be read as an image: {error}; check the path") from None
    # Between two colors there is a third, which may be that of another region.
    way = Image.Resampling.BILINEAR if num_colors is None else Image.Resampling.NEAREST
    colors = (images.to_tensor(painted.resize(size, way)) + 1) / 2
    found = [_mask(colors, region, num_colors) for region in range(num)]
    return torch.stack([torch.ones_like(mask) if mask.max() == 0 else mask for mask in found])


def _mask(colors: Tensor, region: int, num_colors: int | None) -> Tensor:
    """Return one mask (H, W) of colors (3, H, W) in [0, 1]."""
    if num_colors is not None and region < num_colors:
        bits = torch.tensor([(region + 1) >> bit & 1 for bit in range(NUM_CHANNELS)])
        return ((colors * 255).round() == bits[:, None, None] * 255).all(dim=0).float()
    if num_colors is None and region < NUM_CHANNELS:
        return colors[region]
    return torch.ones_like(colors[0])
