"""The names of samplers: which function each is, and at which timesteps it visits discrete-time models.

Any of them visits other levels by a schedule: `spacings.SPACINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from sfumato.diffusion import samplers, schedules
from sfumato.diffusion.samplers import Sampler
from sfumato.diffusion.spacings import SPACINGS
from sfumato.diffusion.starts import Entry, earlier_start, exact_start
from sfumato.errors import UserError
from sfumato.models.interface.family import Prediction


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler as it is used with discrete-time models.

    Attributes:
        spacing: number of steps -> timesteps, falling.
        starts_from_noise: start from noise of the first level's deviation; otherwise the model is shown
            noise of unit deviation at first. The first level keeps a little of an image, so these differ.
        ends_clean: whether the last step ends without noise; otherwise at the smallest level of the schedule.
        has_middles: whether the first steps go by their middles; see `schedules.with_middles`.
        entry: where sampling starts from an image.
        of_velocities: the sampler for models that predict these, if it is another.
    """

    sampler: Sampler
    spacing: Callable[[int], Tensor]
    starts_from_noise: bool = False
    ends_clean: bool = True
    has_middles: bool = False
    entry: Entry = exact_start
    of_velocities: Sampler | None = None


def _spread(sampler: Sampler) -> SamplerChoice:
    return SamplerChoice(sampler, schedules.spread_timesteps, starts_from_noise=True)


FLOW: Mapping[str, Sampler] = {"euler": samplers.euler, "heun": samplers.heun}
"""Samplers of flow models; the family says at which levels."""

DISCRETE: dict[str, SamplerChoice] = {
    # DDIM is Euler's method along the noise level; here it visits the timesteps that it is published with.
    "ddim": SamplerChoice(samplers.euler, schedules.leading_timesteps),
    "pndm": SamplerChoice(samplers.plms, schedules.leading_timesteps, ends_clean=False),
    "lms": _spread(samplers.lms),
    "euler": _spread(samplers.euler),
    "euler_a": _spread(samplers.euler_ancestral),
    "heun": _spread(samplers.heun),
    "dpm_2": _spread(samplers.dpm_2),
    "dpm_2_a": _spread(samplers.dpm_2_ancestral),
    # Its slope is undefined without noise, and it looks at the slope at both ends of its last steps.
    "dpmsolver": SamplerChoice(samplers.dpm_solver, schedules.inner_timesteps, ends_clean=False),
    "dpmsolver++": SamplerChoice(samplers.dpm_solver_pp, schedules.inner_timesteps),
    "dpmsingle": SamplerChoice(samplers.dpm_solver_pp_single, schedules.inner_timesteps),
}
"""Samplers of models that predict noise or velocity, by the names of sd-scripts."""

_TWO_CALLS_A_STEP = ("heun", "dpm_2", "dpm_2_a", "pndm")
"""Samplers that sd-scripts starts from an image at a wrong level, which is not wanted here."""

_CHANGED = {
    "pndm": replace(
        DISCRETE["pndm"], sampler=samplers.pndm, has_middles=True, of_velocities=samplers.pndm_of_velocities
    ),
    "dpmsolver++": replace(DISCRETE["dpmsolver++"], ends_clean=False),
    "dpmsingle": replace(DISCRETE["dpmsingle"], ends_clean=False),
}

EARLIER: Mapping[str, SamplerChoice] = {
    name: choice if name in _TWO_CALLS_A_STEP else replace(choice, entry=earlier_start)
    for name, choice in (DISCRETE | _CHANGED).items()
}
"""Samplers as sd-scripts has them in image generation, with the diffusers that it asks for."""

PREFERRED: Mapping[Prediction, str] = {
    Prediction.FLOW: "euler",
    Prediction.EPSILON: "ddim",
    Prediction.VELOCITY: "ddim",
}
"""What takes the place of a sampler that there is not."""


def names(prediction: Prediction) -> list[str]:
    """Return the names of all samplers for one kind of model."""
    return list(FLOW if prediction is Prediction.FLOW else DISCRETE)


def own_name(name: str, prediction: Prediction) -> str | None:
    """Return our name of one of sd-scripts' samplers, or None where there is none for this kind of model.

    `k_euler` is `euler`, and for a flow model `ddim` is too.
    """
    bare = name.lower().removeprefix("k_")
    if prediction is Prediction.FLOW and bare == "ddim":
        bare = "euler"
    return bare if bare in names(prediction) else None


def check(name: str, schedule: str | None, prediction: Prediction) -> None:
    """Raise UserError if there is no sampler or no schedule of that name."""
    known = names(prediction)
    if name not in known:
        raise UserError(f"sampler is '{name}'; use one of {', '.join(known)}")
    if schedule is not None and schedule not in SPACINGS:
        raise UserError(f"schedule is '{schedule}'; use one of {', '.join(SPACINGS)}")
