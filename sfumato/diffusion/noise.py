"""Random numbers that are the same on every device where they are drawn on the CPU, then moved.

What adds to noise computes where the noise is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.transfer import to_device


def draw(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Draw standard normal noise.

    Args:
        shape: of the result, usually (B, C, H/8, W/8).
        rng: it advances as `torch.randn(shape)` would advance the global one.

    Returns:
        `shape`, float32, on the device of the generator: the CPU, if the numbers are to be everywhere alike.
    """
    return torch.randn(tuple(shape), generator=rng, device=rng.device)


def draw_rows(shape: Sequence[int], rngs: Sequence[torch.Generator]) -> Tensor:
    """Draw each sample's noise from a generator of its own, so that it does not depend on its company.

    Args:
        shape: of one sample, usually (C, H/8, W/8).
        rngs: B generators, as for `draw`.

    Returns:
        (B, *shape), float32, on the device of the generators.
    """
    return torch.cat([draw((1, *shape), rng) for rng in rngs])


def perturb(
    noise: Tensor,
    gamma: float,
    rng: torch.Generator,
    is_random: bool = False,
    *,
    is_strength_first: bool = False,
) -> Tensor:
    """Add the input perturbation of Ning et al. 2023 (arXiv:2301.11706): `noise + gamma * xi`.

    Only the noisy input takes the perturbed noise; the target keeps the plain one.

    Args:
        noise: (B, C, H/8, W/8).
        gamma: standard deviation of the perturbation relative to the noise.
        is_random: scale gamma by one uniform draw in [0, 1).
        is_strength_first: make that draw before xi instead of after it.
    """
    before = torch.rand(1, generator=rng) if is_random and is_strength_first else None
    xi = to_device(draw(noise.shape, rng), noise.device)
    if not is_random:
        return noise + gamma * xi
    strength = torch.rand(1, generator=rng) if before is None else before
    return noise + to_device(strength, noise.device) * gamma * xi


def offset(
    noise: Tensor,
    strength: float,
    rng: torch.Generator,
    *,
    is_random: bool = False,
    brightness: Tensor | None = None,
    adaptive_scale: float = 0.0,
) -> Tensor:
    """Add one normal number to each channel, so that an image's mean can be learned.

    Args:
        noise: (B, C, H/8, W/8).
        strength: of the added numbers.
        is_random: scale it by one uniform draw in [0, 1), made first.
        brightness: (B, C, 1, 1), absolute means of the latents' channels, on the device of the noise.
        adaptive_scale: how much of it is added to the strength, which never falls below 0.
    """
    drawn = torch.rand(1, generator=rng) * strength if is_random else torch.tensor(strength)
    scale = to_device(drawn, noise.device)
    if brightness is not None:
        scale = (scale + adaptive_scale * brightness).clamp(min=0)
    return noise + scale * to_device(draw((*noise.shape[:2], 1, 1), rng), noise.device)


def pyramid(
    noise: Tensor, num_levels: int, discount: float, rng: torch.Generator, ratios: random.Random
) -> Tensor:
    """Add coarser and coarser noise, then scale the sum to unit deviation.

    Args:
        noise: (B, C, H/8, W/8).
        num_levels: at most; a level one pixel wide or high is the last.
        discount: level i, counted from 0, has the weight `discount^i`.
        ratios: each level draws its ratio r evenly from [2, 4) here, and is `r^i` times smaller.
    """
    height, width = noise.shape[2:]
    for level in range(num_levels):
        shrink = (2 + 2 * ratios.random()) ** level
        size = max(1, int(height / shrink)), max(1, int(width / shrink))
        coarse = to_device(draw((*noise.shape[:2], *size), rng), noise.device)
        noise = noise + functional.interpolate(coarse, (height, width), mode="bilinear") * discount**level
        if 1 in size:
            break
    return noise / noise.std()
