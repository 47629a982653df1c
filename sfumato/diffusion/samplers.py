"""Samplers: one function each, one signature, for flow and variance-exploding models alike.

Both kinds satisfy `dx/dsigma = (x - x0) / sigma`, where x0 is the denoised prediction (Karras et al. 2022,
arXiv:2206.00364, eq. 1 and 3; for a flow model the right side is its velocity), so a sampler need not know
which kind it integrates. Discrete-time models are of the second kind once their latents are divided by the
part of the signal that is kept; the right side, called slope here, is then the predicted noise, and DDIM is
Euler's method (Song et al. 2021, arXiv:2010.02502, eq. 14). `ancestral` samplers, which add noise as they go,
and the DPM-Solvers are written for this second kind alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from functools import wraps
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from sfumato.diffusion import noise
from sfumato.transfer import to_device

Denoise = Callable[[Tensor, float], Tensor]
"""`denoise(x, sigma) -> x0`: the clean latents predicted for x, (B, C, H/8, W/8), at noise level sigma."""

Rng = torch.Generator | Sequence[torch.Generator] | None
"""What samplers draw from that add noise: one for all of a batch, or one for each sample."""

OnStep = Callable[[int, Tensor], None]
"""`on_step(i, x)`: called after step i, counted from 0, with the new x."""

Revise = Callable[[Tensor, float], Tensor]
"""`revise(x, sigma) -> x`: what sampling goes on with after a step that led to that noise level."""


class Sampler(Protocol):
    """What every sampler of this module looks like."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        rng: Rng = None,
        on_step: OnStep | None = None,
        revise: Revise | None = None,
    ) -> Tensor:
        """Integrate from `sigmas[0]` to `sigmas[-1]`.

        Args:
            x: (B, C, H/8, W/8), latents at noise level `sigmas[0]`.
            sigmas: (steps + 1,), falling; on the CPU, so that reading them waits for no device.
            rng: for the samplers that add noise; on the CPU, or on the device of x.
            revise: changes x between steps, to keep a part of an image for example.

        Returns:
            (B, C, H/8, W/8), clean if the last sigma is 0.
        """
        ...


Steps = Generator[tuple[Tensor, float], Tensor, None]
"""A sampler as it is written here: yields x and its level after each step, and is sent what to go on with."""


def sampler(steps: Callable[[Denoise, Tensor, list[float], Rng], Steps]) -> Sampler:
    """Let steps be walked to their end; the list holds the noise levels to visit."""

    @wraps(steps)
    def sample(
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        rng: Rng = None,
        on_step: OnStep | None = None,
        revise: Revise | None = None,
    ) -> Tensor:
        walk, i = steps(denoise, x, sigmas.tolist(), rng), 0
        following = next(walk, None)
        while following is not None:
            x = revise(*following) if revise else following[0]
            if on_step:
                on_step(i, x)
            following, i = _sent(walk, x), i + 1
        return x

    return sample


def _sent(walk: Steps, x: Tensor) -> tuple[Tensor, float] | None:
    """Let steps go on with x; return what the next one comes to, None behind the last."""
    try:
        return walk.send(x)
    except StopIteration:
        return None


@sampler
def euler(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Take straight steps along the slope at each level (Euler's method)."""
    for level, following in pairwise(levels):
        x = x + (following - level) * _slope(denoise, x, level)
        x = yield x, following


@sampler
def heun(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Average the slopes at both ends of each step (Heun's method, Karras et al. 2022, algorithm 1).

    Calls `denoise` twice a step, but once in a step that ends at 0, where the slope is undefined.
    """
    for level, following in pairwise(levels):
        slope = _slope(denoise, x, level)
        ahead = x + (following - level) * slope
        if following > 0:
            ahead = x + (following - level) * (slope + _slope(denoise, ahead, following)) / 2
        x = ahead
        x = yield x, following


@sampler
def euler_ancestral(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Take Euler's steps to a lower level than asked for, and add the noise that is missing there."""
    for level, following in pairwise(levels):
        down, up = ancestral(level, following)
        x = noisier(x + (down - level) * _slope(denoise, x, level), up, rng)
        x = yield x, following


@sampler
def dpm_2(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Take steps along the slope at the geometric mean of both levels (DPM-Solver-2).

    Lu et al. 2022, arXiv:2206.00927, algorithm 1. Calls `denoise` twice a step, but once in a step to 0.
    """
    for level, following in pairwise(levels):
        x = x + (following - level) * _middle_slope(denoise, x, level, following)
        x = yield x, following


@sampler
def dpm_2_ancestral(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Take the steps of `dpm_2` to a lower level than asked for, and add the noise that is missing there."""
    for level, following in pairwise(levels):
        down, up = ancestral(level, following)
        x = noisier(x + (down - level) * _middle_slope(denoise, x, level, down), up, rng)
        x = yield x, following


@sampler
def lms(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Extrapolate the slope by the polynomial through the last four (linear multistep)."""
    slopes: list[Tensor] = []
    for i, (level, following) in enumerate(pairwise(levels)):
        slopes = [_slope(denoise, x, level), *slopes[:3]]
        nodes = [levels[i - k] for k in range(len(slopes))]
        parts = (_integral(nodes, k, level, following) * slope for k, slope in enumerate(slopes))
        x = x + torch.stack(list(parts)).sum(dim=0)
        x = yield x, following


@sampler
def plms(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Extrapolate the slope as if the levels of the last four were evenly spaced, as timesteps are.

    Liu et al. 2022, arXiv:2202.09778 (PNDM), with Heun's method for the first step.
    """
    slopes: list[Tensor] = []
    for i, (level, following) in enumerate(pairwise(levels)):
        slopes = [_slope(denoise, x, level), *slopes[:3]]
        mixed = _mixed(slopes)
        if i == 0 and len(levels) > 2:
            ahead = x + (following - level) * slopes[0]
            mixed = (slopes[0] + _slope(denoise, ahead, following)) / 2
        x = x + (following - level) * mixed
        x = yield x, following


@sampler
def pndm(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Extrapolate as `plms` does, with Runge and Kutta's method for the first three steps, as published.

    These have one more level, in their middle: `schedules.with_middles`. Each calls `denoise` four times.
    """
    return _pndm(denoise, x, levels, _slope, lambda slope, x, level: slope)


@sampler
def pndm_of_velocities(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Take the steps of `pndm` with velocities in the place of slopes, as diffusers does with such models.

    A mix of velocities is read as a slope at the level where its step begins.
    """
    return _pndm(denoise, x, levels, _velocity, _slope_of_velocity)


def _pndm(
    denoise: Denoise,
    x: Tensor,
    levels: list[float],
    measure: Callable[[Denoise, Tensor, float], Tensor],
    slope_of: Callable[[Tensor, Tensor, float], Tensor],
) -> Steps:
    """Take the steps of `pndm`.

    Args:
        measure: asks the model for what is mixed.
        slope_of: reads a mix as the slope of x at a level.
    """
    before: list[Tensor] = []
    num_halved = max(min(RUNGE_KUTTA_STEPS, (len(levels) - 1) // 2), 0)
    for i in range(num_halved):
        level, middle, following = levels[2 * i : 2 * i + 3]
        first = measure(denoise, x, level)
        second = measure(denoise, x + (middle - level) * slope_of(first, x, level), middle)
        third = measure(denoise, x + (middle - level) * slope_of(second, x, level), middle)
        fourth = measure(denoise, x + (following - level) * slope_of(third, x, level), following)
        before = [first, *before]
        x = x + (following - level) * slope_of((first + 2 * second + 2 * third + fourth) / 6, x, level)
        x = yield x, following
    for level, following in pairwise(levels[2 * num_halved :]):
        before = [measure(denoise, x, level), *before[:3]]
        x = x + (following - level) * slope_of(_mixed(before), x, level)
        x = yield x, following


RUNGE_KUTTA_STEPS = 3
"""Steps of `pndm` until there are enough slopes to extrapolate from."""


ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""By number of slopes, newest first: their weights, where they are evenly spaced."""

FEW_STEPS = 15
"""With fewer steps than this, the last step of the multistep DPM-Solvers is one of first order."""


@sampler
def dpm_solver(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Extrapolate the slope linearly in log sigma from the last two (DPM-Solver, second order, multistep)."""
    before = None
    for i, (level, following) in enumerate(pairwise(levels)):
        slope = _slope(denoise, x, level)
        change = _extrapolation(levels, i) * (slope - before) if before is not None else 0
        x = x + (following - level) * (slope + change)
        before = slope
        x = yield x, following


@sampler
def dpm_solver_pp(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Extrapolate the clean latents linearly in log sigma from the last two (DPM-Solver++ 2M).

    Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    before = None
    for i, (level, following) in enumerate(pairwise(levels)):
        clean = denoise(x, level)
        change = _extrapolation(levels, i) * (clean - before) if before is not None else 0
        x = _towards(clean + change, x, level, following)
        before = clean
        x = yield x, following


@sampler
def dpm_solver_pp_single(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Take steps in pairs, of which the second starts again from where the first did (DPM-Solver++ 2S).

    Lu et al. 2022, arXiv:2211.01095, algorithm 1. A step to 0 is of first order, and so is one without a
    partner.
    """
    num_paired = (len(levels) - 1 - (levels[-1] == 0)) // 2 * 2
    start, before = x, x
    for i, (level, following) in enumerate(pairwise(levels)):
        clean = denoise(x, level)
        if i % 2 == 0 or i >= num_paired:
            start, before = x, clean
            x = _towards(clean, x, level, following)
        else:
            first = levels[i - 1]
            ratio = math.log(first / level) / math.log(first / following)
            x = _towards(before + (clean - before) / (2 * ratio), start, first, following)
        x = yield x, following


def _mixed(slopes: Sequence[Tensor]) -> Tensor:
    """Return the slope that the last ones, newest first, extrapolate to."""
    parts = zip(ADAMS_BASHFORTH[len(slopes)], slopes, strict=True)
    return torch.stack([part * slope for part, slope in parts]).sum(dim=0)


def _slope(denoise: Denoise, x: Tensor, level: float) -> Tensor:
    return (x - denoise(x, level)) / level


def _velocity(denoise: Denoise, x: Tensor, level: float) -> Tensor:
    """Return what a discrete-time velocity model says: `clean = x / (1 + s^2) - v s / sqrt(1 + s^2)`."""
    share = 1 + level**2
    return (x / share - denoise(x, level)) * math.sqrt(share) / level


def _slope_of_velocity(velocity: Tensor, x: Tensor, level: float) -> Tensor:
    share = 1 + level**2
    return x * level / share + velocity / math.sqrt(share)


def _middle_slope(denoise: Denoise, x: Tensor, level: float, following: float) -> Tensor:
    slope = _slope(denoise, x, level)
    if following == 0:
        return slope
    middle = math.sqrt(level * following)
    return _slope(denoise, x + (middle - level) * slope, middle)


def ancestral(level: float, following: float) -> tuple[float, float]:
    """Return the level to go down to, and the deviation of the noise that leads up again to `following`."""
    up = following * math.sqrt(1 - (following / level) ** 2)
    return following**2 / level, up


def noisier(x: Tensor, deviation: float, rng: Rng) -> Tensor:
    """Return x with noise of that deviation added; raise ValueError if there is none to draw from."""
    if deviation == 0:
        return x
    if rng is None:
        raise ValueError("this sampler adds noise; give it a generator")
    is_shared = isinstance(rng, torch.Generator)
    drawn = noise.draw(x.shape, rng) if is_shared else noise.draw_rows(x.shape[1:], rng)
    return x + deviation * to_device(drawn, x.device).to(x.dtype)


def _integral(nodes: Sequence[float], k: int, start: float, end: float) -> float:
    """Integrate the polynomial that is 1 at node k and 0 at the others; exact for up to four nodes."""
    middle, half = (start + end) / 2, (end - start) / 2
    others = [node for j, node in enumerate(nodes) if j != k]
    places = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))  # Gauss and Legendre's
    return half * sum(math.prod((at - node) / (nodes[k] - node) for node in others) for at in places)


def _extrapolation(levels: Sequence[float], i: int) -> float:
    """Return the weight of the last change in the step from level i: 0 in steps of first order."""
    num_steps = len(levels) - 1
    if i == 0 or levels[i + 1] == 0 or (i == num_steps - 1 and num_steps < FEW_STEPS):
        return 0.0
    return math.log(levels[i] / levels[i + 1]) / (2 * math.log(levels[i - 1] / levels[i]))


def _towards(clean: Tensor, x: Tensor, level: float, following: float) -> Tensor:
    """Go straight towards clean latents, from one level to the following."""
    return clean + following / level * (x - clean)
