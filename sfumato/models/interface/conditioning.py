"""What a denoiser listens to besides noisy latents and timesteps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


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
