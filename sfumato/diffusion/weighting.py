"""Which noise levels matter: densities to draw them from, weights for their losses.

Flow models have schemes; discrete-time models have weights that depend on the signal-to-noise ratio (SNR).
The schemes are those of Esser et al. 2024 (arXiv:2403.03206), section 3.1.

The scheme's density is used when levels are drawn from the discrete table, its weight when the prediction is
scaled by sigma: `logit_normal` and `mode` change the density, `sigma_sqrt` and `cosmap` the weight.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Scheme = Literal["sigma_sqrt", "logit_normal", "mode", "cosmap", "none", "uniform"]


def density(
    scheme: Scheme,
    num: int,
    rng: torch.Generator,
    *,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    mode_scale: float = 1.29,
) -> Tensor:
    """Draw positions in the table of noise levels.

    Args:
        num: how many, B.
        rng: a CPU generator, which makes one draw of size (B,).
        logit_mean, logit_std: of the normal variable whose sigmoid `logit_normal` takes (eq. 19).
        mode_scale: weight on the modes of `mode` (eq. 20).

    Returns:
        (B,) in [0, 1], 0 = the noisiest level.
    """
    if scheme == "logit_normal":
        return torch.normal(logit_mean, logit_std, (num,), generator=rng).sigmoid()
    u = torch.rand(num, generator=rng)
    if scheme == "mode":
        return 1 - u - mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    return u


def loss_weight(scheme: Scheme, sigmas: Tensor) -> Tensor:
    """Return the factor on each sample's loss.

    Args:
        sigmas: any shape, in (0, 1].

    Returns:
        Shaped like `sigmas`: `sigma^-2` for `sigma_sqrt`, `2 / (pi * (1 - 2 s + 2 s^2))` for `cosmap`
        (eq. 21), 1 for the others.
    """
    if scheme == "sigma_sqrt":
        return sigmas**-2.0
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
    return torch.ones_like(sigmas)


MAX_SNR = 1000.0
"""Ratios above count as this where weights rise or fall with them without bound: only timestep 0's does."""


def min_snr(snr: Tensor, gamma: float, is_velocity: bool = False) -> Tensor:
    """Return `min(snr, gamma) / snr`, or over `snr + 1` for velocities (Hang et al. 2023, arXiv:2303.09556).

    Args:
        snr: any shape, positive.
    """
    return snr.clamp(max=gamma) / (snr + 1 if is_velocity else snr)


def noise_like(snr: Tensor) -> Tensor:
    """Return the weight that turns the loss of a velocity into the loss of the noise: `snr / (snr + 1)`."""
    snr = snr.clamp(max=MAX_SNR)
    return snr / (snr + 1)


def velocity_like(snr: Tensor, strength: float) -> Tensor:
    """Return 1 plus `strength` times the weight that turns the loss of the noise into a velocity's."""
    return 1 + strength / noise_like(snr)


def debiased(snr: Tensor, is_velocity: bool = False) -> Tensor:
    """Return `1 / sqrt(snr)` (Yu et al. 2023, arXiv:2310.08442), or `1 / (snr + 1)` for velocities."""
    snr = snr.clamp(max=MAX_SNR)
    return 1 / (snr + 1) if is_velocity else snr.rsqrt()
