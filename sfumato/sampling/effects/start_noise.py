"""Noise that sampling starts from, made coarser or brighter: images vary more in composition and light.

Each image draws from its own seed whether its noise is changed, and how, so that its company and the noise of
its steps do not matter.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.diffusion import noise
from sfumato.errors import UserError
from sfumato.sampling.plan import Effect, Plan
from sfumato.seeds import derive

NUM_LEVELS = 8
"""Of coarser and coarser noise, at most."""

Range = tuple[float, float]


@dataclass(frozen=True)
class StartNoise:
    """How often, and how strongly, the noise of images is changed.

    Attributes:
        pyramid_probability: of coarser noise in an image's, in [0, 1].
        pyramid_discount: between what the weight of each coarser noise lies, relative to the one before.
        offset_probability: of another mean of each channel, in [0, 1].
        offset: its strength is the first number, and a normal number times the distance to the second.
    """

    pyramid_probability: float = 0.0
    pyramid_discount: Range = (0.0, 0.0)
    offset_probability: float = 0.0
    offset: Range = (0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("pyramid_probability", "offset_probability"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}; use a number from 0 to 1")


def start_noise(settings: StartNoise) -> Effect:
    """Return the effect that changes what a batch starts from where there is no image."""

    @contextmanager
    def effect(plan: Plan) -> Iterator[Plan]:
        seeds = [request.seed for request in plan.requests]
        yield replace(plan, noise=replace(plan.noise, start=varied(plan.noise.start, seeds, settings)))

    return effect


def varied(start: Tensor, seeds: Sequence[int], settings: StartNoise) -> Tensor:
    """Return the noise (B, C, H/8, W/8) of images with these seeds, changed as the settings say."""
    return torch.cat([_varied(row, seed, settings) for row, seed in zip(start.split(1), seeds, strict=True)])


def _varied(row: Tensor, seed: int, settings: StartNoise) -> Tensor:
    choices = random.Random(derive("start noise", seed))
    rng = torch.Generator().manual_seed(derive("start noise values", seed))
    if choices.random() < settings.pyramid_probability:
        row = noise.pyramid(row, NUM_LEVELS, choices.uniform(*settings.pyramid_discount), rng, choices)
    if choices.random() < settings.offset_probability:
        least, most = settings.offset
        row = noise.offset(row, choices.gauss(0, 1) * (most - least) + least, rng)
    return row
