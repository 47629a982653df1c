"""What samplers know nothing of: how latents at a noise level look to a model, and what its answer says.

Samplers work on x at noise levels sigma. A space turns x into what the model is shown, sigma into its
timestep, and its output into clean latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.diffusion import objectives, schedules
from sfumato.diffusion.samplers import Sampler
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

    def sigmas(self, request: Request) -> Tensor:
        """Return the (steps + 1,) noise levels to visit, falling, on the CPU."""
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


def space_for(family: Family, request: Request, *, zero_terminal: bool = False) -> Space:
    """Return the space of a family's models, with the sampler that the request names.

    Args:
        zero_terminal: whether the model was trained with a schedule that ends in pure noise. Only velocity
            models can be sampled with one: a noise prediction says nothing where there is only noise.
    """
    if family.prediction is Prediction.FLOW:
        return FlowSpace(family, sampler_names.FLOW[request.sampler])
    is_velocity = family.prediction is Prediction.VELOCITY
    return DiscreteSpace(sampler_names.DISCRETE[request.sampler], is_velocity, zero_terminal and is_velocity)


@dataclass(frozen=True)
class FlowSpace:
    """Flow models: shown x itself, `(1 - sigma) * clean + sigma * noise`; they answer with noise - clean."""

    family: Family
    sampler: Sampler

    def sigmas(self, request: Request) -> Tensor:
        """Ask the family, which knows how levels depend on the image's size."""
        return self.family.sampling_sigmas(request.steps, request.width, request.height).cpu()

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
        return self.method.sampler

    def sigmas(self, request: Request) -> Tensor:
        """Return the levels at the method's timesteps.

        A schedule that ends in pure noise has to be entered there (Lin et al. 2023, arXiv:2305.08891, section
        3.3), so timesteps that leave the end out are counted back from it instead.
        """
        spacing, table = self.method.spacing, self._table
        if self.zero_terminal and spacing is schedules.leading_timesteps:
            spacing = schedules.trailing_timesteps
        last = torch.zeros(1) if self.method.ends_clean else table[:1]
        return torch.cat([schedules.sigma_at(spacing(request.steps), table), last])

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
    def _table(self) -> Tensor:
        return schedules.ddpm_sigmas(self.zero_terminal)
