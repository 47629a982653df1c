"""Unsharp masking: what enlarging blurred is sharpened again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.sampling.settings.gradual_latent import UnsharpMask


def sharpened(latents: Tensor, mask: UnsharpMask | None) -> Tensor:
    """Add to latents, (B, C, h, w), what a blur takes away from them; None leaves them as they are."""
    if mask is None:
        return latents
    return latents + (latents - blurred(latents, mask.kernel, mask.sigma)) * mask.strength


def blurred(latents: Tensor, kernel: int, sigma: float) -> Tensor:
    """Return latents, (B, C, h, w), under a Gaussian blur; borders are mirrored.

    Args:
        kernel: width in latent pixels, odd, and at most twice the smaller side.
        sigma: deviation in latent pixels.
    """
    places = torch.arange(kernel, dtype=torch.float32) - kernel // 2
    weights = torch.exp(-((places / sigma) ** 2) / 2)
    row = (weights / weights.sum()).to(latents.device, latents.dtype)
    channels = latents.shape[1]
    padded = functional.pad(latents, [kernel // 2] * 4, mode="reflect")
    across = functional.conv2d(padded, row.expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(across, row[:, None].expand(channels, 1, -1, 1), groups=channels)
