"""Which noise levels matter: densities to draw them from, weights for their losses.

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
