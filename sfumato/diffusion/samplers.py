"""Samplers: one function each, one signature, for flow and variance-exploding models alike.

Both kinds satisfy `dx/dsigma = (x - x0) / sigma`, where x0 is the denoised prediction (Karras et al. 2022,
arXiv:2206.00364, eq. 1 and 3; for a flow model the right side is its velocity), so a sampler need not know
which kind it integrates.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""`denoise(x, sigma) -> x0`: the clean latents predicted for x, (B, C, H/8, W/8), at noise level sigma."""

OnStep = Callable[[int, Tensor], None]
"""`on_step(i, x)`: called after step i, counted from 0, with the new x."""


class Sampler(Protocol):
    """What every sampler of this module looks like."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        rng: torch.Generator | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Integrate from `sigmas[0]` to `sigmas[-1]`.

        Args:
            x: (B, C, H/8, W/8), latents at noise level `sigmas[0]`.
            sigmas: (steps + 1,), falling; on the CPU, so that reading them waits for no device.
            rng: a CPU generator, for the samplers that add noise.

        Returns:
            (B, C, H/8, W/8), clean if the last sigma is 0.
        """
        ...


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Take straight steps along the slope at each level (Euler's method)."""
    levels = sigmas.tolist()
    for i, (level, following) in enumerate(pairwise(levels)):
        x = x + (following - level) * _slope(denoise, x, level)
        if on_step:
            on_step(i, x)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Average the slopes at both ends of each step (Heun's method, Karras et al. 2022, algorithm 1).

    Calls `denoise` twice a step, but once in a step that ends at 0, where the slope is undefined.
    """
    levels = sigmas.tolist()
    for i, (level, following) in enumerate(pairwise(levels)):
        slope = _slope(denoise, x, level)
        ahead = x + (following - level) * slope
        if following > 0:
            ahead = x + (following - level) * (slope + _slope(denoise, ahead, following)) / 2
        x = ahead
        if on_step:
            on_step(i, x)
    return x


def _slope(denoise: Denoise, x: Tensor, level: float) -> Tensor:
    return (x - denoise(x, level)) / level
