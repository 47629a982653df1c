"""How flow models are trained whose scripts have options of their own for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sfumato.diffusion.weighting import Scheme

LevelTable = Callable[[Tensor, float, float], Tensor]
"""Returns noise levels (B,) between a lowest and a highest, of positions (B,) in [0, 1]."""


@dataclass(frozen=True)
class FlowTraining:
    """The noise levels of a flow model, and what its loss compares: the clean latents.

    Compared are the latents that the predicted velocity points to, so that its error counts by sigma squared.

    Attributes:
        levels: of positions that the scheme's density draws.
        scheme: density and weight of the noise levels; see `diffusion/weighting.py`.
        logit_mean, logit_std, mode_scale: parameters of the scheme's density.
    """

    levels: LevelTable
    scheme: Scheme = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
