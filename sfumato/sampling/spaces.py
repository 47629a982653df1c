"""What samplers know nothing of: how latents at a noise level look to a model, and what its answer says.

Samplers work on x at noise levels sigma. A space turns x into what the model is shown, sigma into its
timestep, and its output into clean latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.diffusion import objectives, schedules, starts
from sfumato.diffusion.samplers import Sampler
from sfumato.diffusion.spacings import SPACINGS
from sfumato.models.interface.family import Family, Prediction
from sfumato.sampling import sampler_names
from sfumato.sampling.request import Request
from sfumato.sampling.sampler_names import SamplerChoice


class Space(Protocol):
    """One kind of model, as a sampler needs it. All tensors are (B, C, H/8, W/8)."""

    @property
    def sampler(self) -> Sampler:
        """The sampler of the request."""
        ...

    def sigmas(self, request: Request, first: int = 0) -> Tensor:
        """Return the noise levels to visit from a step on, one more than steps, falling, on the CPU."""
        ...

    def enter(self, clean: Tensor, noise: Tensor, request: Request, strength: float) -> tuple[Tensor, int]:
        """Return x made of clean latents, and the step that sampling starts with.

        Args:
            strength: share of the steps that is made, in [0, 1].
        """
        ...

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """Return x at the first level, made of standard normal noise."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Return x at a level, made of clean latents and standard normal noise."""
        ...

    def shown(self, x: Tensor, sigma: float) -> Tensor:
        """Return what the model is shown of x."""
        ...

    def timestep(self, sigma: float) -> float:
        """Return the model's timestep, in [0, 1000], for a noise level."""
        ...

    def clean(self, output: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Return the clean latents that the model's output points to."""
        ...

    def end(self, x: Tensor, sigma: float) -> Tensor:
        """Return latents for the autoencoder, made of x at the last level."""
        ...


def space_for(
    family: Family,
    request: Request,
    *,
    zero_terminal: bool = False,
    samplers: Mapping[str, SamplerChoice] = sampler_names.DISCRETE,
) -> Space:
    """Return the space of a family's models, with the sampler that the request names.

    Args:
        samplers: of discrete-time models.
        zero_terminal: whether the model was trained with a schedule that ends in pure noise. Only velocity
            models can be sampled with one: a noise prediction says nothing where there is only noise.
    """
    if family.prediction is Prediction.FLOW:
        return FlowSpace(family, sampler_names.FLOW[request.sampler])
    is_velocity = family.prediction is Prediction.VELOCITY
    return DiscreteSpace(samplers[request.sampler], is_velocity, zero_terminal and is_velocity)


@dataclass(frozen=True)
class FlowSpace:
    """Flow models: shown x itself, `(1 - sigma) * clean + sigma * noise`; they answer with noise - clean."""

    family: Family
    sampler: Sampler

    def sigmas(self, request: Request, first: int = 0) -> Tensor:
        """Ask the family, which knows how levels depend on the image's size."""
        size = request.width, request.height
        if request.schedule is None:
            return self.family.sampling_sigmas(request.steps, *size).cpu()[first:]
        table = self.family.sampling_sigmas(schedules.NUM_TIMESTEPS, *size).cpu()[:-1].flip(0)
        return _spaced(request, table, ends_clean=True)[first:]

    def enter(self, clean: Tensor, noise: Tensor, request: Request, strength: float) -> tuple[Tensor, int]:
        """Go to the level of the first step."""
        first = starts.first_step(request.steps, strength)
        return self.noised(clean, noise, float(self.sigmas(request)[first])), first

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """Scale the noise to its part."""
        return noise * sigma

    def noised(self, clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Return the point of the straight path."""
        return (1 - sigma) * clean + sigma * noise

    def shown(self, x: Tensor, sigma: float) -> Tensor:
        """Return x."""
        return x

    def timestep(self, sigma: float) -> float:
        """Return 1000 * sigma."""
        return sigma * schedules.NUM_TIMESTEPS

    def clean(self, output: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Follow the straight path to its end."""
        return x - sigma * output

    def end(self, x: Tensor, sigma: float) -> Tensor:
        """Return x."""
        return x


@dataclass(frozen=True)
class DiscreteSpace:
    """Discrete-time models: x is `clean + sigma * noise`; they are shown it scaled to constant variance."""

    method: SamplerChoice
    is_velocity: bool
    zero_terminal: bool = False

    @property
    def sampler(self) -> Sampler:
        """The method's sampler."""
        of_velocities = self.method.of_velocities if self.is_velocity else None
        return of_velocities or self.method.sampler

    def sigmas(self, request: Request, first: int = 0) -> Tensor:
        """Return the levels at the method's timesteps, or those of a schedule.

        A schedule that ends in pure noise has to be entered there (Lin et al. 2023, arXiv:2305.08891, section
        3.3), so timesteps that leave the end out are counted back from it instead.
        """
        if request.schedule is not None:
            return _spaced(request, self._table, ends_clean=self.method.ends_clean)[first:]
        timesteps = self._spacing(request.steps)[first:]
        if self.method.has_middles:
            timesteps = schedules.with_middles(timesteps, schedules.NUM_TIMESTEPS // request.steps)
        last = torch.zeros(1) if self.method.ends_clean else self._table[:1]
        return torch.cat([schedules.sigma_at(timesteps, self._table), last])

    def enter(self, clean: Tensor, noise: Tensor, request: Request, strength: float) -> tuple[Tensor, int]:
        """Go to the level that the method says.

        Where that is not the level of the first step, latents that a model is shown are taken for those of
        the first step, as sd-scripts does.
        """
        level, first = self.method.entry(request.steps, strength)
        reached, wanted = (float(self.sigmas(request, step)[0]) for step in (level, first))
        x = self.noised(clean, noise, reached)
        if level == first or self.method.starts_from_noise:
            return x, first
        return self.shown(x, reached) * (1 + wanted**2) ** 0.5, first

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """Scale the noise as the method does."""
        return noise * (sigma if self.method.starts_from_noise else (1 + sigma**2) ** 0.5)

    def noised(self, clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Add the noise."""
        return clean + sigma * noise

    def shown(self, x: Tensor, sigma: float) -> Tensor:
        """Return `sqrt(a) * x`, where a = 1 / (1 + sigma^2)."""
        return x / (1 + sigma**2) ** 0.5

    def timestep(self, sigma: float) -> float:
        """Look the level up, between the schedule's where it falls between them."""
        return schedules.timestep_at(sigma, self._table)

    def clean(self, output: Tensor, x: Tensor, sigma: float) -> Tensor:
        """Read the output as velocity or as noise."""
        read = objectives.clean_from_velocity if self.is_velocity else objectives.clean_from_noise
        return read(output, x, sigma)

    def end(self, x: Tensor, sigma: float) -> Tensor:
        """Return what a model would be shown at the last level."""
        return self.shown(x, sigma)

    @property
    def _spacing(self) -> Callable[[int], Tensor]:
        is_short = self.zero_terminal and self.method.spacing is schedules.leading_timesteps
        return schedules.trailing_timesteps if is_short else self.method.spacing

    @property
    def _table(self) -> Tensor:
        return schedules.ddpm_sigmas(self.zero_terminal)


def _spaced(request: Request, table: Tensor, *, ends_clean: bool) -> Tensor:
    """Return the levels of a request's schedule; the last is 0, or the smallest of the model."""
    spacing = SPACINGS[request.schedule or "normal"]
    if ends_clean:
        return torch.cat([spacing(table, request.steps).float(), torch.zeros(1)])
    return spacing(table, request.steps + 1).float()
