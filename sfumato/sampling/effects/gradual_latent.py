"""Gradual latent: sampling begins with small latents, which grow while the image forms.

The composition is decided at a size that the model knows, and details are added at the size asked for. Steps
are those of the ancestral Euler sampler, whose noise suits any size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from sfumato.diffusion import samplers
from sfumato.diffusion.samplers import Denoise, Rng, Sampler, Steps
from sfumato.errors import UserError
from sfumato.models.interface.family import Family, Prediction, is_inpainting
from sfumato.sampling.effects.deep_shrink import resized
from sfumato.sampling.effects.unsharp import sharpened
from sfumato.sampling.plan import Plan
from sfumato.sampling.request import Request
from sfumato.sampling.settings.gradual_latent import GradualLatent

logger = logging.getLogger(__name__)

SAMPLER = "euler_a"
UNIT = 8
"""Sides of growing latents are multiples of it, so that a UNet can halve them three times."""


def check(request: Request, family: Family) -> None:
    """Raise UserError if a request's latents are to grow, and cannot."""
    if request.gradual_latent is None:
        return
    if family.prediction is Prediction.FLOW:
        raise UserError(f"gradual_latent is for {SAMPLER}, a sampler that flow models have not; leave it out")
    if request.sampler == SAMPLER and (request.mask is not None or is_inpainting(family)):
        raise UserError("gradual_latent is given, and what a mask keeps does not grow; leave one of them out")


@contextmanager
def gradual_latent(plan: Plan) -> Iterator[Plan]:
    """Let latents grow while a batch is sampled, as its requests say; other samplers stay as they are."""
    settings, sampler = plan.requests[0].gradual_latent, plan.requests[0].sampler
    if settings is None:
        yield plan
    elif sampler != SAMPLER:
        logger.warning("latents do not grow with the sampler %s; take %s", sampler, SAMPLER)
        yield plan
    else:
        yield replace(plan, sampler=growing(settings, plan.space.timestep))


def growing(settings: GradualLatent, timestep_of: Callable[[float], float]) -> Sampler:
    """Return a sampler for discrete-time models that is given latents of full size, and shrinks them first.

    `revise` and `on_step` see latents of each step's size.

    Args:
        timestep_of: timestep in [0, 1000] of a noise level; see `Space.timestep`.
    """

    @samplers.sampler
    def grow(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
        full, sizes = x.shape[-2:], _Sizes(settings, x.shape[-2], x.shape[-1])
        x = sharpened(resized(x, ratio=settings.ratio), settings.unsharp)
        for level, following in pairwise(levels):
            slope, size = (x - denoise(x, level)) / level, sizes.next(timestep_of(level))
            x = yield _step(x, slope, (level, following), size, settings, rng), following
        if x.shape[-2:] != full:
            logger.warning(
                "latents grew to %d x %d of %d x %d, and the image is as small; take more steps, a larger "
                "ratio, and sides that are multiples of 64",
                *(x.shape[-1], x.shape[-2], full[-1], full[-2]),
            )

    return grow


class _Sizes:
    """Which size latents grow to, step by step."""

    def __init__(self, settings: GradualLatent, height: int, width: int) -> None:
        self._settings = settings
        self._full = height, width
        self._ratio = settings.ratio
        self._waited = settings.every_n_steps

    def next(self, timestep: float) -> tuple[int, int] | None:
        """Return (height, width) after the step at a timestep, or None where they stay."""
        settings, size = self._settings, None
        if timestep < settings.timesteps and self._ratio < 1 and self._waited >= settings.every_n_steps:
            self._ratio = min(self._ratio + settings.ratio_step, 1.0)
            self._waited = 0
            height, width = (max(int(side * self._ratio) // UNIT, 1) * UNIT for side in self._full)
            size = height, width
        self._waited += 1
        return size


def _step(
    x: Tensor,
    slope: Tensor,
    levels: tuple[float, float],
    size: tuple[int, int] | None,
    settings: GradualLatent,
    rng: Rng,
) -> Tensor:
    """Take an ancestral step along the slope from one level to another; `size` None keeps the size."""
    down, up = samplers.ancestral(*levels)
    change = down - levels[0]
    if size is None:
        return samplers.noisier(x + change * slope, up, rng)
    return samplers.noisier(_enlarged(x, slope, change, size, settings), up * settings.s_noise, rng)


def _enlarged(
    x: Tensor, slope: Tensor, change: float, size: tuple[int, int], settings: GradualLatent
) -> Tensor:
    """Step along a slope, and to another size; sharpen what comes out of the step or what goes into it."""
    sharpen = settings.unsharp
    if sharpen is None or sharpen.after_step:
        return sharpened(resized(x + change * slope, size), sharpen)
    return sharpened(resized(x, size), sharpen) + change * resized(slope, size)
