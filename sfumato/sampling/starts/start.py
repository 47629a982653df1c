"""Starts: what a sampler is given at first, and what is put back after each of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sfumato.diffusion import starts
from sfumato.diffusion.samplers import Revise
from sfumato.sampling.request import STRENGTH, Request
from sfumato.sampling.spaces import Space
from sfumato.sampling.starts.noise import Noise


class Started(NamedTuple):
    """Where sampling starts.

    Attributes:
        x: (B, C, H/8, W/8), at the level of the first step.
        first: number of that step; those before it are left out.
        revise: what sampling goes on with after each step; None leaves it as it is.
    """

    x: Tensor
    first: int = 0
    revise: Revise | None = None


Start = Callable[[Space, Request, Noise], Started]
"""`start(space, request, noise)`, for requests that are sampled at once."""


def from_noise(space: Space, request: Request, noise: Noise) -> Started:
    """Start from noise alone."""
    return Started(space.start(noise.start, float(space.sigmas(request)[0])))


def from_image(clean: Tensor, keep: Tensor | None = None) -> Start:
    """Return a start from images, of which a part may be kept.

    Args:
        clean: (B, C, H/8, W/8), their latents.
        keep: broadcasts to them; 1 keeps, 0 paints anew, and what lies between mixes.
    """

    def start(space: Space, request: Request, noise: Noise) -> Started:
        strength = STRENGTH if request.strength is None else request.strength
        x, first = space.enter(clean, noise.image, request, strength)
        if keep is None:
            return Started(x, first)
        return Started(x, first, starts.keeping(lambda sigma: space.noised(clean, noise.image, sigma), keep))

    return start
