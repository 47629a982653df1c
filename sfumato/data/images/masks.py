"""Loss masks: how much each pixel of an image counts, from its transparency or from an image beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sfumato.data.images.buckets import Size
from sfumato.data.images.images import decode


@dataclass(frozen=True)
class MaskSource:
    """Where an image's mask comes from.

    Attributes:
        path: of the image whose red channel is the mask; None where it is the image's own transparency.
    """

    path: str | None = None

    @property
    def is_alpha(self) -> bool:
        """Whether the mask is the image's own transparency; opaque images count fully."""
        return self.path is None


def decode_mask(path: str) -> Image.Image:
    """Return the mask that an image's red channel is: black does not count, 255 counts fully.

    Raises:
        BrokenImageError: the file is damaged.
    """
    return decode(path).getchannel("R")


def to_tensor(mask: Image.Image) -> Tensor:
    """Return (1, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None] / 255


def shrunk(mask: Tensor, size: Size) -> Tensor:
    """Return the mask averaged down to latents: (1, h, w) for `size` (h, w).

    The loss would do the same later; a batch is smaller this way.
    """
    return functional.interpolate(mask[None], size=size, mode="area")[0]
