"""Noise schedules: which noise levels exist, and in which order sampling visits them.

Flow models (Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206) use sigma in [0, 1] with
`noisy = (1 - sigma) * clean + sigma * noise`; a timestep is 1000 times sigma.

Discrete-time models (Ho et al. 2020, arXiv:2006.11239) use integer timesteps in [0, 1000) with
`noisy = sqrt(a) * clean + sqrt(1 - a) * noise`, where a is alpha_bar, what is kept of the clean latents. Seen
as `noisy / sqrt(a) = clean + sigma * noise`, their noise level is sigma = sqrt((1 - a) / a), 0.029 to 14.6.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

NUM_TIMESTEPS = 1000

BETA_START, BETA_END = 0.00085, 0.012
"""The noise added by the first and the last step of Stable Diffusion's schedule."""

LEAST_KEPT = 2.0**-24
"""Stands for alpha_bar = 0 where something must be divided by it; its sigma is 4096."""


def _table(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a table be made once, and of real numbers, whatever becomes of those around it at that time."""

    @functools.cache
    @functools.wraps(make)
    def made(*given: Hashable) -> Tensor:
        with _disable_current_modes():
            return make(*given)

    return made


def shift(sigmas: Tensor, factor: float) -> Tensor:
    """Move noise levels towards 1 by Esser et al. 2024, eq. 23: `f * s / (1 + (f - 1) * s)`.

    Args:
        sigmas: any shape, in [0, 1]; 0 and 1 stay where they are.
        factor: 1 changes nothing; above 1 means more noise.
    """
    return factor * sigmas / (1 + (factor - 1) * sigmas)


@_table
def flow_table(shift_factor: float) -> Tensor:
    """Return the 1000 discrete noise levels of flow training, (1000,) float32 from 1 down to about 0.001."""
    levels = torch.arange(NUM_TIMESTEPS, 0, -1, dtype=torch.float32) / NUM_TIMESTEPS
    return shift(levels, shift_factor)


def shift_exponent(num_tokens: float) -> float:
    """Return mu, the logarithm of the shift that suits an image of `num_tokens` image tokens.

    Linear between 0.5 at 256 tokens (256 px) and 1.15 at 4096 tokens (1024 px), and beyond both.
    """
    return 0.5 + (num_tokens - 256) * (1.15 - 0.5) / (4096 - 256)


def flow_sigmas(num_steps: int, mu: float | None = None) -> Tensor:
    """Return the noise levels that sampling a flow model visits.

    Args:
        num_steps: denoising steps.
        mu: logarithm of the shift; None spaces the levels evenly.

    Returns:
        (num_steps + 1,) float32, from 1 to 0.
    """
    levels = torch.linspace(1, 0, num_steps + 1)
    return levels if mu is None else shift(levels, math.exp(mu))


@_table
def ddpm_betas() -> Tensor:
    """Return the noise that each step adds, (1000,) float32: Stable Diffusion's, linear in their roots."""
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS) ** 2


@_table
def ddpm_kept(zero_terminal: bool = False) -> Tensor:
    """Return alpha_bar by timestep, (1000,) float32, falling.

    Args:
        zero_terminal: rescale the schedule so that nothing is kept at the last timestep (Lin et al. 2023,
            arXiv:2305.08891, algorithm 1).
    """
    if not zero_terminal:
        return torch.cumprod(1 - ddpm_betas(), dim=0)
    return torch.cumprod(1 - zero_terminal_betas(ddpm_betas()), dim=0)


def zero_terminal_betas(betas: Tensor) -> Tensor:
    """Return the schedule with the first alpha_bar unchanged and the last one 0, roots stretched in between.

    Args:
        betas: (T,), in (0, 1).
    """
    roots = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    kept = ((roots - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


def signal_to_noise(kept: Tensor) -> Tensor:
    """Return `alpha_bar / (1 - alpha_bar)`, shaped like `kept`."""
    return kept / (1 - kept)


def noise_to_signal(kept: Tensor) -> Tensor:
    """Return sigma, `sqrt((1 - alpha_bar) / alpha_bar)`, shaped like `kept`; infinite at 0."""
    return ((1 - kept) / kept).sqrt()


@_table
def ddpm_sigmas(zero_terminal: bool = False) -> Tensor:
    """Return sigma by timestep, (1000,) float32, rising; finite at the last timestep too."""
    return noise_to_signal(ddpm_kept(zero_terminal).clamp(min=LEAST_KEPT))


def sigma_at(timesteps: Tensor, table: Tensor) -> Tensor:
    """Return sigma at timesteps in [0, 999] that may lie between the table's, linearly interpolated.

    Args:
        timesteps: any shape.
        table: (1000,), sigma by timestep.
    """
    below = timesteps.floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[below], table[below + 1], (timesteps - below).to(table.dtype))


def timestep_at(sigma: float, table: Tensor) -> float:
    """Return the timestep in [0, 999] at which the interpolated `table`, (1000,) rising, has this sigma."""
    above = int(torch.searchsorted(table, sigma).clamp(1, len(table) - 1))
    low, high = float(table[above - 1]), float(table[above])
    return above - 1 + min(max((sigma - low) / (high - low), 0.0), 1.0)


def leading_timesteps(num_steps: int) -> Tensor:
    """Return timesteps at equal, whole distances counted from 1, (num_steps,) float32, falling.

    The noisiest timesteps are left out; with 20 steps the first is 951.
    """
    stride = NUM_TIMESTEPS // num_steps
    rising = 1 + stride * torch.arange(num_steps, dtype=torch.float32)
    return rising.flip(0).clamp(max=NUM_TIMESTEPS - 1)


def with_middles(falling: Tensor, distance: int, most: int = 3) -> Tensor:
    """Return timesteps, and behind each of the first the middle of the way to the next.

    Args:
        falling: (n,), at equal distances.
        distance: between two of them.
        most: of the ways have a middle; the last timestep has no way to go.
    """
    num_halved = max(min(most, len(falling) - 1), 0)
    first = torch.stack([falling[:num_halved], falling[:num_halved] - distance // 2], dim=1).flatten()
    return torch.cat([first, falling[num_halved:]])


def trailing_timesteps(num_steps: int) -> Tensor:
    """Return whole timesteps at equal distances counted back from 999, (num_steps,) float32, falling."""
    falling = NUM_TIMESTEPS - NUM_TIMESTEPS / num_steps * torch.arange(num_steps, dtype=torch.float64)
    return (falling.round() - 1).clamp(min=0).float()


def spread_timesteps(num_steps: int) -> Tensor:
    """Return timesteps spread evenly from 999 to 0, both included, (num_steps,) float32, falling."""
    return torch.linspace(NUM_TIMESTEPS - 1, 0, num_steps, dtype=torch.float64).float()


def inner_timesteps(num_steps: int) -> Tensor:
    """Return whole timesteps spread evenly from 999 towards 0, which is left out, (num_steps,) float32."""
    return torch.linspace(NUM_TIMESTEPS - 1, 0, num_steps + 1, dtype=torch.float64)[:-1].round().float()
