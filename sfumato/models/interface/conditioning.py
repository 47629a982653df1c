"""What a denoiser listens to besides noisy latents and timesteps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

INPAINT_MASK, MASKED_LATENTS = "inpaint_mask", "masked_latents"
"""Names in `Conditioning.control` of what inpainting models are told, in the order of their channels."""

CONTROL_IMAGE = "control_image"
"""Name there of what a ControlNet reads, (B, 3, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class ImageSizes:
    """How each image of a batch was framed: (B, 2) int64, (height, width) or (top, left)."""

    original: Tensor
    crop: Tensor
    target: Tensor


@dataclass(frozen=True)
class Conditioning:
    """Everything besides noisy latents and timesteps that the denoiser listens to.

    Attributes:
        text: the text encoders' outputs by name, each (B, ...); cache files use the same names.
        guidance: (B,) distilled guidance scale, for the models that have one.
        sizes: framing of each image, for the models that are told.
        control: what else steers the model, by name, each (B, ...): an image in [-1, 1], residuals, further
            input channels.
    """

    text: Mapping[str, Tensor]
    guidance: Tensor | None = None
    sizes: ImageSizes | None = None
    control: Mapping[str, Tensor] = field(default_factory=dict)


def masked(pixels: Tensor, mask: Tensor) -> Tensor:
    """Return what an inpainting model sees of images, (B, 3, H, W) in [-1, 1]: grey where they are repainted.

    Args:
        mask: (B, 1, H, W) bool, True where an image is repainted.
    """
    return pixels.masked_fill(mask, 0.0)


def inpainting(mask: Tensor, masked_latents: Tensor) -> dict[str, Tensor]:
    """Return what inpainting models are told, as entries of `Conditioning.control`.

    Args:
        mask: (B, 1, H, W) bool, True where an image is repainted; of the pixels of latents, one counts.
        masked_latents: (B, C, H/8, W/8), scaled, of `masked` images.
    """
    shrunk = functional.interpolate(mask.to(masked_latents.dtype), size=masked_latents.shape[-2:])
    return {INPAINT_MASK: shrunk, MASKED_LATENTS: masked_latents}


def with_inpainting(noisy: Tensor, control: Mapping[str, Tensor]) -> Tensor:
    """Return noisy latents, (B, C, h, w), with the further channels of an inpainting model, if any."""
    further = [control[name] for name in (INPAINT_MASK, MASKED_LATENTS) if name in control]
    return torch.cat([noisy, *(each.to(noisy.dtype) for each in further)], dim=1) if further else noisy
