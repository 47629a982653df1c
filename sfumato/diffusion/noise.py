"""Random numbers that are the same on every device: drawn on the CPU, then moved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Draw standard normal noise.

    Args:
        shape: of the result, usually (B, C, H/8, W/8).
        rng: a CPU generator; it advances as `torch.randn(shape)` would advance the global one.

    Returns:
        `shape`, float32, on the CPU.
    """
    return torch.randn(tuple(shape), generator=rng)


def perturb(noise: Tensor, gamma: float, rng: torch.Generator, is_random: bool = False) -> Tensor:
    """Add the input perturbation of Ning et al. 2023 (arXiv:2301.11706): `noise + gamma * xi`.

    Only the noisy input takes the perturbed noise; the target keeps the plain one.

    Args:
        noise: (B, C, H/8, W/8), on the CPU.
        gamma: standard deviation of the perturbation relative to the noise.
        is_random: scale gamma by one uniform draw in [0, 1), made after xi.
    """
    xi = draw(noise.shape, rng)
    strength = torch.rand(1, generator=rng) * gamma if is_random else gamma
    return noise + strength * xi


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor without making the host wait for the device's queue."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # A copy from pageable memory synchronises; from pinned memory it is queued.
    return tensor.pin_memory().to(device, non_blocking=True)
