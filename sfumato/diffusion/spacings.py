"""Spacings: which of a model's noise levels sampling visits, whatever the sampler.

Each takes the levels by timestep, (T,) rising, and a number of steps, and returns (steps,) levels, falling.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.diffusion import schedules

Spacing = Callable[[Tensor, int], Tensor]

RHO = 7.0
"""Karras et al. 2022 (arXiv:2206.00364), section 5: how much more densely small levels lie."""

BETA = 0.6
"""Both parameters of the beta distribution of Lee et al. 2024 (arXiv:2407.12173), section 4."""


def normal(table: Tensor, num_steps: int) -> Tensor:
    """Spread timesteps evenly from the last to the first, both included."""
    return schedules.sigma_at(schedules.spread_timesteps(num_steps), table)


def simple(table: Tensor, num_steps: int) -> Tensor:
    """Take whole timesteps at equal distances, counted back from the last; the first is left out."""
    back = torch.arange(num_steps) * len(table) // num_steps
    return table[len(table) - 1 - back]


def karras(table: Tensor, num_steps: int) -> Tensor:
    """Spread the seventh roots of levels evenly (Karras et al. 2022, eq. 5)."""
    high, low = (float(level) ** (1 / RHO) for level in (table[-1], table[0]))
    return _even(high, low, num_steps) ** RHO


def exponential(table: Tensor, num_steps: int) -> Tensor:
    """Spread the logarithms of levels evenly."""
    return _even(math.log(table[-1]), math.log(table[0]), num_steps).exp()


def beta(table: Tensor, num_steps: int) -> Tensor:
    """Take timesteps densely at both ends: at even quantiles of a beta distribution (Lee et al. 2024)."""
    shares = 1 - torch.arange(num_steps, dtype=torch.float64) / num_steps
    places = _quantiles(shares) * (len(table) - 1)
    return table[places.round().long()]


SPACINGS: dict[str, Spacing] = {
    "normal": normal,
    "karras": karras,
    "exponential": exponential,
    "simple": simple,
    "beta": beta,
}
"""By the names that people know."""


def _even(first: float, last: float, number: int) -> Tensor:
    return torch.linspace(first, last, number, dtype=torch.float64)


def _quantiles(shares: Tensor) -> Tensor:
    """Return where the distribution function of Beta(0.6, 0.6) has these values, in [0, 1]."""
    places, reached = _distribution()
    above = torch.searchsorted(reached, shares).clamp(1, len(reached) - 1)
    low, high = reached[above - 1], reached[above]
    return torch.lerp(places[above - 1], places[above], ((shares - low) / (high - low)).clamp(0, 1))


@functools.cache
def _distribution() -> tuple[Tensor, Tensor]:
    """Return places x in [0, 1], and the distribution function there.

    With x = sin(a)^2, what is integrated has no pole: x^(b-1) (1-x)^(b-1) dx = 2 (sin a cos a)^(2b-1) da.
    """
    angles = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    density = (angles.sin() * angles.cos()).clamp(min=0) ** (2 * BETA - 1)
    area = torch.cumsum((density[1:] + density[:-1]) / 2, dim=0)
    return angles.sin() ** 2, torch.cat([area.new_zeros(1), area / area[-1]])
