"""How a model is shown noise in training, and how its answer is read.

The order of everything random is noise, what is added to it, timesteps, then the input's perturbation, all
from one CPU generator, so that a step is a function of its generator alone, on every device.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sfumato import seeds
from sfumato.diffusion import noise, objectives, schedules, timesteps, weighting
from sfumato.diffusion.flow_training import LevelTable
from sfumato.diffusion.schedules import NUM_TIMESTEPS
from sfumato.transfer import to_device

_LEAST = 1 / NUM_TIMESTEPS


class Levels(Protocol):
    """Noise levels of a batch, from which its weights are computed."""

    @property
    def levels(self) -> Tensor:
        """(B,) float32, sigma: the part of noise for flow models, the ratio of noise to signal else."""
        ...

    @property
    def snr(self) -> Tensor | None:
        """(B,) float32, on the CPU: the signal-to-noise ratios that weights are computed from, if any are."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Noise levels as they were drawn, on the CPU: see `Levels`.

    Attributes:
        timesteps: (B,) float32 in [0, 1000].
    """

    levels: Tensor
    timesteps: Tensor
    snr: Tensor | None = None


@dataclass(frozen=True)
class Noised:
    """A batch as the model is shown it, with what it should answer.

    Attributes:
        noisy, target: (B, C, H/8, W/8) float32.
        levels, snr: see `Levels`.
        timesteps: (B,) float32 in [0, 1000].
    """

    noisy: Tensor
    target: Tensor
    levels: Tensor
    timesteps: Tensor
    snr: Tensor | None = None


class Noising(Protocol):
    """How one kind of model is shown noise and how its answer is read."""

    def __call__(self, latents: Tensor, rng: torch.Generator) -> Noised:
        """Draw noise and timesteps for latents (B, C, H/8, W/8) float32, scaled."""
        ...

    def draw(self, shape: torch.Size, rng: torch.Generator) -> Drawn:
        """Draw noise levels alone, for latents of that shape."""
        ...

    def read(self, output: Tensor, noised: Noised) -> Tensor:
        """Turn the model's output into what the loss compares with the target."""
        ...

    def weigh(self, noised: Levels) -> Tensor | None:
        """Return (B,) factors on the loss, or None for 1."""
        ...


@dataclass(frozen=True)
class FlowNoising:
    """The noising of rectified flow: straight paths from the latents to noise.

    Attributes:
        sampling: how noise levels are drawn; the names are those of `--timestep_sampling`.
        interpretation: how the output is read; see `diffusion/objectives.py`.
        scheme: density and weight of the noise levels; see `diffusion/weighting.py`.
        shift: factor towards more noise, for the samplings `sigma` and `shift`.
        sigmoid_scale: spread of the levels, for the samplings that take a sigmoid.
        logit_mean, logit_std, mode_scale: parameters of the scheme's density.
        patch: latent pixels per token side, for the sampling that shifts by the image's size.
        low, high: levels are squeezed into this range.
        perturbation: standard deviation of extra noise that only the input takes, relative to the noise.
        table: noise levels of positions that the scheme's density draws, instead of `sampling`.
        is_clean_wanted: whether the output, as it is read, is compared with the latents themselves.
    """

    sampling: Literal["sigma", "uniform", "sigmoid", "shift", "flux_shift"] = "sigma"
    interpretation: objectives.Interpretation = "sigma_scaled"
    scheme: weighting.Scheme = "none"
    shift: float = 3.0
    sigmoid_scale: float = 1.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    patch: int = 2
    low: float = 0.0
    high: float = 1.0
    perturbation: float = 0.0
    is_perturbation_random: bool = False
    table: LevelTable | None = None
    is_clean_wanted: bool = False

    def __call__(self, latents: Tensor, rng: torch.Generator) -> Noised:
        """Draw noise, then levels, then the perturbation if there is one."""
        plain = noise.draw(latents.shape, rng)
        drawn = self.draw(latents.shape, rng)
        shown = plain
        if self.perturbation:
            shown = noise.perturb(plain, self.perturbation, rng, self.is_perturbation_random)
        plain, shown = _on_device(plain, shown, latents.device)
        levels = to_device(drawn.levels, latents.device)
        return Noised(
            noisy=objectives.flow_noisy(latents, shown, levels),
            target=latents if self.is_clean_wanted else objectives.flow_target(latents, plain),
            levels=levels,
            timesteps=levels * NUM_TIMESTEPS,
        )

    def draw(self, shape: torch.Size, rng: torch.Generator) -> Drawn:
        """Draw levels, and the timesteps that belong to them."""
        levels = self.levels(shape, rng)
        return Drawn(levels, levels * NUM_TIMESTEPS)

    def levels(self, shape: torch.Size, rng: torch.Generator) -> Tensor:
        """Draw sigma, (B,) in [low, high] on the CPU, for latents shaped (B, C, H/8, W/8)."""
        if self.table is not None:
            return self.table(
                weighting.density(self.scheme, shape[0], rng, **self._density), self.low, self.high
            )
        sigmas = self._draw(shape, rng)
        return sigmas if (self.low, self.high) == (0, 1) else timesteps.restrict(sigmas, self.low, self.high)

    def read(self, output: Tensor, noised: Noised) -> Tensor:
        """Apply the interpretation."""
        return objectives.flow_interpret(output, noised.noisy, noised.levels, self.interpretation)

    def weigh(self, noised: Levels) -> Tensor | None:
        """Return the scheme's weights; as in sd-scripts, only outputs scaled by sigma are weighted."""
        if self.interpretation != "sigma_scaled":
            return None
        levels = noised.levels
        # A level of 0 has no error to weigh: what is shown is what is wanted.
        return weighting.loss_weight(
            self.scheme, levels.clamp(min=_LEAST) if self.is_clean_wanted else levels
        )

    def _draw(self, shape: torch.Size, rng: torch.Generator) -> Tensor:
        num = shape[0]
        if self.sampling == "uniform":
            return timesteps.uniform(num, rng)
        if self.sampling == "sigmoid":
            return timesteps.sigmoid(num, rng, scale=self.sigmoid_scale)
        if self.sampling == "shift":
            return timesteps.shifted(num, rng, shift=self.shift, scale=self.sigmoid_scale)
        if self.sampling == "flux_shift":
            tokens = (shape[2] // self.patch) * (shape[3] // self.patch)
            return timesteps.size_shifted(num, rng, num_tokens=tokens, scale=self.sigmoid_scale)
        return timesteps.sigma(num, rng, shift=self.shift, scheme=self.scheme, **self._density)

    @property
    def _density(self) -> dict[str, float]:
        return {"logit_mean": self.logit_mean, "logit_std": self.logit_std, "mode_scale": self.mode_scale}


@dataclass(frozen=True)
class NoiseShape:
    """What is added to plain noise before it is mixed with the latents.

    Attributes:
        offset: strength of a constant for each channel; 0 adds none.
        is_offset_random: whether the strength is drawn anew between 0 and `offset`.
        adaptive_scale: how much the strength grows with the brightness of the latents.
        pyramid_levels, pyramid_discount: number and weight of coarser noises.
    """

    offset: float = 0.0
    is_offset_random: bool = False
    adaptive_scale: float = 0.0
    pyramid_levels: int = 0
    pyramid_discount: float = 0.3

    def __call__(self, latents: Tensor, rng: torch.Generator, ratios: random.Random) -> Tensor:
        """Draw noise shaped like latents (B, C, H/8, W/8), on the CPU or where the latents are."""
        drawn, brightness = noise.draw(latents.shape, rng), None
        if self.offset:
            if self.adaptive_scale:  # what depends on the latents stays with them: no device is waited for
                brightness = latents.mean((2, 3), keepdim=True).abs()
                drawn = to_device(drawn, latents.device)
            drawn = noise.offset(
                drawn,
                self.offset,
                rng,
                is_random=self.is_offset_random,
                brightness=brightness,
                adaptive_scale=self.adaptive_scale,
            )
        if self.pyramid_levels:
            drawn = noise.pyramid(drawn, self.pyramid_levels, self.pyramid_discount, rng, ratios)
        return drawn


@dataclass(frozen=True)
class SnrWeights:
    """Factors on the loss of a discrete-time model; all that are asked for are multiplied.

    Attributes:
        is_velocity: whether the model predicts velocity instead of noise.
        min_snr_gamma: see `weighting.min_snr`.
        is_noise_like: see `weighting.noise_like`.
        velocity_like: strength, see `weighting.velocity_like`.
        is_debiased: see `weighting.debiased`.
    """

    is_velocity: bool = False
    min_snr_gamma: float | None = None
    is_noise_like: bool = False
    velocity_like: float | None = None
    is_debiased: bool = False

    def __call__(self, snr: Tensor) -> Tensor | None:
        """Return the product for ratios (B,), or None where nothing is asked for."""
        factors: list[Tensor] = []
        if self.min_snr_gamma:
            factors.append(weighting.min_snr(snr, self.min_snr_gamma, self.is_velocity))
        if self.is_noise_like:
            factors.append(weighting.noise_like(snr))
        if self.velocity_like:
            factors.append(weighting.velocity_like(snr, self.velocity_like))
        if self.is_debiased:
            factors.append(weighting.debiased(snr, self.is_velocity))
        return torch.stack(factors).prod(dim=0) if factors else None


@dataclass(frozen=True)
class DdpmNoising:
    """The noising of discrete-time models that predict noise or velocity.

    Attributes:
        is_velocity: what the model predicts.
        zero_terminal: whether the schedule ends in pure noise; see `schedules.ddpm_kept`.
        shape: what is added to the noise.
        weights: factors on the loss. They are computed from the schedule as it was before its end was
            rescaled, in which no ratio is 0.
        low, high: timesteps are drawn from [low, high).
        perturbation: standard deviation of extra noise that only the input takes, relative to the noise.
    """

    is_velocity: bool = False
    zero_terminal: bool = False
    shape: NoiseShape = NoiseShape()
    weights: SnrWeights = SnrWeights()
    low: int = 0
    high: int = NUM_TIMESTEPS
    perturbation: float = 0.0
    is_perturbation_random: bool = False

    def __call__(self, latents: Tensor, rng: torch.Generator, ratios: random.Random | None = None) -> Noised:
        """Draw noise, then timesteps, then the perturbation if there is one.

        Args:
            ratios: what the sizes of coarser noises are drawn from; where None, a generator of its own that
                follows from the seed of `rng`.
        """
        ratios = ratios or random.Random(seeds.derive("pyramid", rng.initial_seed()))
        plain = self.shape(latents, rng, ratios)
        drawn = self.draw(latents.shape, rng)
        shown = plain
        if self.perturbation:
            is_random = self.is_perturbation_random
            shown = noise.perturb(plain, self.perturbation, rng, is_random, is_strength_first=True)
        plain, shown = _on_device(plain, shown, latents.device)
        kept_there = to_device(self._kept(drawn.timesteps), latents.device)
        velocity = objectives.ddpm_velocity(latents, plain, kept_there) if self.is_velocity else None
        return Noised(
            noisy=objectives.ddpm_noisy(latents, shown, kept_there),
            target=plain if velocity is None else velocity,
            levels=to_device(drawn.levels, latents.device),
            timesteps=to_device(drawn.timesteps, latents.device),
            snr=drawn.snr,
        )

    def draw(self, shape: torch.Size, rng: torch.Generator) -> Drawn:
        """Draw timesteps, and the levels and ratios that belong to them."""
        steps = timesteps.whole(shape[0], rng, low=self.low, high=self.high)
        return Drawn(
            levels=schedules.noise_to_signal(self._kept(steps)),
            timesteps=steps.float(),
            snr=schedules.signal_to_noise(schedules.ddpm_kept()[steps]),
        )

    def _kept(self, steps: Tensor) -> Tensor:
        """Return how much of the latents is left at timesteps (B,)."""
        return schedules.ddpm_kept(self.zero_terminal)[steps.long()]

    def read(self, output: Tensor, noised: Noised) -> Tensor:
        """Return the output as it is."""
        return output

    def weigh(self, noised: Levels) -> Tensor | None:
        """Return the weights that the options ask for."""
        assert noised.snr is not None
        return self.weights(noised.snr)


def _on_device(plain: Tensor, shown: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Move the target's noise and the input's, which are the same tensor unless the input is perturbed."""
    there = to_device(plain, device)
    return there, there if shown is plain else to_device(shown, device)
