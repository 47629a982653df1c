"""Element-wise losses, Huber thresholds and masks. Nothing here is reduced over the batch.

Predictions and targets are (B, C, H/8, W/8) in the same space (noise, velocity or latent).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the absolute difference per element."""
    return (prediction - target).abs()


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared difference per element."""
    return (prediction - target) ** 2


def huber(prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """Return the pseudo-Huber loss per element: `2 c (sqrt(d^2 + c^2) - c)`.

    That is about `d^2` for small differences d, and `2 c |d|` for large ones.

    Args:
        threshold: c, (B,), positive.
    """
    c = threshold.reshape(-1, 1, 1, 1)
    return 2 * c * (torch.sqrt((prediction - target) ** 2 + c**2) - c)


def smooth_l1(prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """Return `2 (sqrt(d^2 + c^2) - c)` per element.

    That is about `d^2 / c` for small differences d, and `2 |d|` for large ones.

    Args:
        threshold: c, (B,), positive.
    """
    c = threshold.reshape(-1, 1, 1, 1)
    return 2 * (torch.sqrt((prediction - target) ** 2 + c**2) - c)


def constant_threshold(timesteps: Tensor, c: float, scale: float = 1.0) -> Tensor:
    """Return the same threshold `c * scale` for every sample; `timesteps`: (B,)."""
    return torch.full_like(timesteps, c * scale, dtype=torch.float32)


def exponential_threshold(timesteps: Tensor, c: float, scale: float = 1.0) -> Tensor:
    """Return `scale * c^(t / 1000)`: from `scale` at timestep 0 down to `c * scale` at 1000."""
    return scale * torch.exp(math.log(c) / 1000 * timesteps.float())


def snr_threshold(noise_to_signal: Tensor, c: float) -> Tensor:
    """Return thresholds from 1 without noise down to `c` without signal: `(1 - c) / (1 + r)^2 + c`.

    Args:
        noise_to_signal: r, (B,): `sqrt((1 - alpha_bar) / alpha_bar)` of a discrete-time diffusion.
    """
    return (1 - c) / (1 + noise_to_signal) ** 2 + c


def masked(loss: Tensor, mask: Tensor) -> Tensor:
    """Multiply by a mask, which is first averaged down to the loss's size.

    Args:
        loss: (B, C, h, w).
        mask: (B, 1, H, W) in [0, 1], of pixels or of latents.
    """
    if mask.shape[2:] != loss.shape[2:]:
        mask = functional.interpolate(mask.float(), size=loss.shape[2:], mode="area")
    return loss * mask
