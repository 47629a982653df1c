"""The requests of an image's two stages: small from its start, then in full size from the first."""

from __future__ import annotations

from dataclasses import fields, replace

from sfumato.diffusion.starts import first_step
from sfumato.sampling.request import STRENGTH, Request
from sfumato.sampling.settings.hires import Hires
from sfumato.sampling.settings.sizes import SizeConditions


def num_steps(request: Request) -> int:
    """Return how many steps are made for a request in all its stages."""
    strength = STRENGTH if request.strength is None else request.strength
    changed = request.steps - first_step(request.steps, strength)
    if request.hires is not None:
        return num_steps(first_stage(request, request.hires)) + changed
    return request.steps if request.image is None else changed


MULTIPLE = 32
"""Sides of the first stage are rounded down to multiples of this."""


def first_stage(request: Request, hires: Hires) -> Request:
    """Return what the first stage makes; what a model is told of sizes is scaled, too."""
    return replace(
        request,
        width=_small(request.width, hires.scale),
        height=_small(request.height, hires.scale),
        steps=hires.steps or request.steps,
        strength=request.strength if hires.strength is None else hires.strength,
        sizes=None if request.sizes is None else _scaled(request.sizes, hires.scale),
        hires=None,
    )


def second_stage(request: Request) -> Request:
    """Return what the second stage makes of the first's latents: without a mask, with the next seed."""
    return replace(request, seed=request.seed + 1, image=None, mask=None, hires=None)


def _small(side: int, scale: float) -> int:
    return max(int(side * scale + 0.5) // MULTIPLE * MULTIPLE, MULTIPLE)


def _scaled(sizes: SizeConditions, scale: float) -> SizeConditions:
    said = {field.name: getattr(sizes, field.name) for field in fields(sizes)}
    return SizeConditions(
        **{name: None if value is None else int(value * scale + 0.5) for name, value in said.items()}
    )
