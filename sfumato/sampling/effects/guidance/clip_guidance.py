"""Guidance towards a text or an image, as CLIP understands them (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.sampling.effects.guidance.gradient import Loss


def closeness(embed: Callable[[Tensor], Tensor], wanted: Tensor, scale: float) -> Loss:
    """Return the squared angle between images' embeddings and what is wanted, times `scale`.

    Args:
        embed: embeddings (B, P) of pixels (B, 3, H, W) in [-1, 1].
        wanted: (B, P) or (1, P), of a text or an image.
    """

    def loss(pixels: Tensor) -> Tensor:
        return spherical_distance(embed(pixels), wanted) * scale

    return loss


def spherical_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return half the squared angle, (B,), in radians, between embeddings (B, P) of any length."""
    chord = (functional.normalize(first, dim=-1) - functional.normalize(second, dim=-1)).norm(dim=-1)
    return 2 * torch.arcsin(chord / 2).square()
