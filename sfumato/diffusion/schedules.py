"""Noise schedules: which noise levels exist, and in which order sampling visits them.

Flow models (Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206) use sigma in [0, 1] with
`noisy = (1 - sigma) * clean + sigma * noise`; a timestep is 1000 times sigma.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000


def shift(sigmas: Tensor, factor: float) -> Tensor:
    """Move noise levels towards 1 by Esser et al. 2024, eq. 23: `f * s / (1 + (f - 1) * s)`.

    Args:
        sigmas: any shape, in [0, 1]; 0 and 1 stay where they are.
        factor: 1 changes nothing; above 1 means more noise.
    """
    return factor * sigmas / (1 + (factor - 1) * sigmas)


def flow_table(shift_factor: float) -> Tensor:
    """Return the 1000 discrete noise levels of flow training, (1000,) float32 from 1 down to about 0.001."""
    levels = torch.arange(NUM_TIMESTEPS, 0, -1, dtype=torch.float32) / NUM_TIMESTEPS
    return shift(levels, shift_factor)


def shift_exponent(num_tokens: float) -> float:
    """Return mu, the logarithm of the shift that suits a picture of `num_tokens` image tokens.

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
