"""Noise levels for training: five ways to draw a flow model's sigma, (B,) float32 in [0, 1], 0 = clean.

Every function makes exactly one draw of size (B,) from a CPU generator. A flow model's timestep is
1000 * sigma; discrete-time models draw whole timesteps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.diffusion import schedules, weighting


def sigma(
    num: int,
    rng: torch.Generator,
    *,
    shift: float,
    scheme: weighting.Scheme = "none",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    mode_scale: float = 1.29,
) -> Tensor:
    """Draw from the discrete, shifted table of 1000 levels, with the density of a weighting scheme."""
    positions = weighting.density(
        scheme, num, rng, logit_mean=logit_mean, logit_std=logit_std, mode_scale=mode_scale
    )
    # `mode` reaches 1.0 itself, one past the last entry of the table.
    indices = (positions * schedules.NUM_TIMESTEPS).long().clamp(0, schedules.NUM_TIMESTEPS - 1)
    return schedules.flow_table(shift)[indices]


def uniform(num: int, rng: torch.Generator) -> Tensor:
    """Draw evenly from [0, 1)."""
    return torch.rand(num, generator=rng)


def sigmoid(num: int, rng: torch.Generator, *, scale: float = 1.0) -> Tensor:
    """Draw the sigmoid of a normal variable of standard deviation `scale`: most levels are in the middle."""
    return torch.sigmoid(scale * torch.randn(num, generator=rng))


def shifted(num: int, rng: torch.Generator, *, shift: float, scale: float = 1.0) -> Tensor:
    """Draw as `sigmoid` does, then shift towards more noise by a fixed factor."""
    return schedules.shift(sigmoid(num, rng, scale=scale), shift)


def size_shifted(num: int, rng: torch.Generator, *, num_tokens: float, scale: float = 1.0) -> Tensor:
    """Draw as `sigmoid` does, then shift as sampling shifts an image of `num_tokens` image tokens."""
    factor = math.exp(schedules.shift_exponent(num_tokens))
    return schedules.shift(sigmoid(num, rng, scale=scale), factor)


def restrict(sigmas: Tensor, low: float, high: float) -> Tensor:
    """Squeeze levels from [0, 1] into [low, high], keeping the shape of their distribution."""
    return low + (high - low) * sigmas


def whole(num: int, rng: torch.Generator, *, low: int = 0, high: int = schedules.NUM_TIMESTEPS) -> Tensor:
    """Draw whole timesteps evenly from [low, high), (num,) int64."""
    return torch.randint(low, high, (num,), generator=rng)
