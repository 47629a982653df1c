"""What one training step measures: noise in, a prediction out, one loss per picture.

The order of everything random is noise, then timesteps, then the input's perturbation, all from one CPU
generator, so that a step is a function of its generator alone, on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
from torch import Tensor

from sfumato.config.flow import FlowConfig
from sfumato.config.loss import LossConfig
from sfumato.config.noise import NoiseConfig
from sfumato.config.run import Run
from sfumato.diffusion import losses, noise, objectives, timesteps, weighting
from sfumato.diffusion.schedules import NUM_TIMESTEPS
from sfumato.errors import UserError
from sfumato.models.family import Prediction

Predict = Callable[[Tensor, Tensor], Tensor]
"""`predict(noisy, timesteps) -> output`: (B, C, H/8, W/8) in the latents' dtype, (B,) float32 in [0, 1000],
and an output shaped like `noisy`."""


@dataclass(frozen=True)
class StepLoss:
    """What a step measured.

    Attributes:
        per_sample: (B,) float32, each picture's loss; the step's loss is their mean.
        timesteps: (B,) float32 in [0, 1000], on the same device.
    """

    per_sample: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class Noised:
    """A batch as the model is shown it, with what it should answer.

    Attributes:
        noisy, target: (B, C, H/8, W/8) float32.
        levels: (B,) float32, the noise level in the terms of the noising that made it (sigma for flow).
        timesteps: (B,) float32 in [0, 1000].
    """

    noisy: Tensor
    target: Tensor
    levels: Tensor
    timesteps: Tensor


class Noising(Protocol):
    """How one kind of model is shown noise and how its answer is read."""

    def __call__(self, latents: Tensor, rng: torch.Generator) -> Noised:
        """Draw noise and timesteps for latents (B, C, H/8, W/8) float32, scaled."""
        ...

    def read(self, output: Tensor, noised: Noised) -> Tensor:
        """Turn the model's output into what the loss compares with the target."""
        ...

    def weigh(self, noised: Noised) -> Tensor | None:
        """Return (B,) factors on the loss, or None for 1."""
        ...


@dataclass(frozen=True)
class ElementLoss:
    """How the distance between prediction and target is measured, element by element.

    Attributes:
        kind: `l1`, `l2`, or two that grow linearly above a threshold.
        schedule: how that threshold depends on the timestep.
        c, scale: the threshold's parameters; see `diffusion/losses.py`.
    """

    kind: Literal["l1", "l2", "huber", "smooth_l1"] = "l2"
    schedule: Literal["constant", "exponential"] = "constant"
    c: float = 0.1
    scale: float = 1.0

    def __call__(self, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """Return (B, C, H/8, W/8), unreduced, of float32 tensors of that shape and timesteps (B,)."""
        if self.kind == "l1":
            return losses.l1(prediction, target)
        if self.kind == "l2":
            return losses.l2(prediction, target)
        threshold = (
            losses.constant_threshold if self.schedule == "constant" else losses.exponential_threshold
        )(timesteps, self.c, self.scale)
        element = losses.huber if self.kind == "huber" else losses.smooth_l1
        return element(prediction, target, threshold)


@dataclass(frozen=True)
class Objective:
    """One way of training a denoiser: a noising and a distance."""

    noising: Noising
    loss: ElementLoss

    def __call__(
        self,
        predict: Predict,
        latents: Tensor,
        rng: torch.Generator,
        *,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> StepLoss:
        """Measure one step. Nothing here waits for the device.

        Args:
            predict: asks the model, once.
            latents: (B, C, H/8, W/8), scaled, on the device that everything runs on.
            rng: a CPU generator; the step depends on nothing else that is random.
            mask: (B, 1, H, W) in [0, 1], of pixels or of latents: where the loss counts.
            weights: (B,), each picture's weight (regularisation pictures have another than the rest).
        """
        noised = self.noising(latents.float(), rng)
        output = predict(noised.noisy.to(latents.dtype), noised.timesteps).float()
        loss = self.loss(self.noising.read(output, noised), noised.target, noised.timesteps)
        if mask is not None:
            loss = losses.masked(loss, noise.to_device(mask, loss.device))
        per_sample = loss.mean(dim=tuple(range(1, loss.ndim)))
        for factor in (self.noising.weigh(noised), weights):
            if factor is not None:
                per_sample = per_sample * noise.to_device(factor, loss.device)
        return StepLoss(per_sample, noised.timesteps)


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
        patch: latent pixels per token side, for the sampling that shifts by the picture's size.
        low, high: levels are squeezed into this range.
        perturbation: standard deviation of extra noise that only the input takes, relative to the noise.
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

    def __call__(self, latents: Tensor, rng: torch.Generator) -> Noised:
        """Draw noise, then levels, then the perturbation if there is one."""
        plain = noise.draw(latents.shape, rng)
        drawn = self.levels(latents.shape, rng)
        shown = plain
        if self.perturbation:
            shown = noise.perturb(plain, self.perturbation, rng, self.is_perturbation_random)
        levels, plain_there = (noise.to_device(t, latents.device) for t in (drawn, plain))
        shown = plain_there if shown is plain else noise.to_device(shown, latents.device)
        return Noised(
            noisy=objectives.flow_noisy(latents, shown, levels),
            target=objectives.flow_target(latents, plain_there),
            levels=levels,
            timesteps=levels * NUM_TIMESTEPS,
        )

    def levels(self, shape: torch.Size, rng: torch.Generator) -> Tensor:
        """Draw sigma, (B,) in [low, high] on the CPU, for latents shaped (B, C, H/8, W/8)."""
        sigmas = self._draw(shape, rng)
        return sigmas if (self.low, self.high) == (0, 1) else timesteps.restrict(sigmas, self.low, self.high)

    def read(self, output: Tensor, noised: Noised) -> Tensor:
        """Apply the interpretation."""
        return objectives.flow_interpret(output, noised.noisy, noised.levels, self.interpretation)

    def weigh(self, noised: Noised) -> Tensor | None:
        """Return the scheme's weights; as in sd-scripts, only outputs scaled by sigma are weighted."""
        if self.interpretation != "sigma_scaled":
            return None
        return weighting.loss_weight(self.scheme, noised.levels)

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
        density = {"logit_mean": self.logit_mean, "logit_std": self.logit_std, "mode_scale": self.mode_scale}
        return timesteps.sigma(num, rng, shift=self.shift, scheme=self.scheme, **density)


def objective_for(run: Run, prediction: Prediction, patch: int = 2) -> Objective:
    """Return the objective that a run's options describe.

    Args:
        prediction: what the family's denoiser predicts.
        patch: `LatentSpace.patch` of the family.

    Raises:
        UserError: options contradict each other or the kind of model.
    """
    if prediction is not Prediction.FLOW:
        raise ValueError(f"no objective is known for {prediction}")
    return Objective(_flow_noising(run[FlowConfig], run[NoiseConfig], patch), _element_loss(run[LossConfig]))


def settings_without_effect(run: Run) -> list[str]:
    """Return one line for each option of a flow run that is not at its default and yet does nothing."""
    flow, loss, extra = run[FlowConfig], run[LossConfig], run[NoiseConfig]
    is_table, is_scaled = flow.timestep_sampling == "sigma", flow.model_prediction_type == "sigma_scaled"
    is_density = flow.weighting_scheme in ("logit_normal", "mode")
    is_logit, is_mode = (is_table and flow.weighting_scheme == name for name in ("logit_normal", "mode"))
    is_shifted = flow.timestep_sampling in ("sigma", "shift")
    is_sigmoid = flow.timestep_sampling not in ("sigma", "uniform")
    is_huber = loss.loss_type in ("huber", "smooth_l1")
    for_scheme = "--timestep_sampling sigma" if is_density else "--model_prediction_type sigma_scaled"
    for_huber = "--loss_type huber or smooth_l1"
    needs = {
        "weighting_scheme": (is_table if is_density else is_scaled, for_scheme),
        "logit_mean": (is_logit, "--timestep_sampling sigma --weighting_scheme logit_normal"),
        "logit_std": (is_logit, "--timestep_sampling sigma --weighting_scheme logit_normal"),
        "mode_scale": (is_mode, "--timestep_sampling sigma --weighting_scheme mode"),
        "discrete_flow_shift": (is_shifted, "--timestep_sampling sigma or shift"),
        "sigmoid_scale": (is_sigmoid, "--timestep_sampling sigmoid, shift or flux_shift"),
        "huber_c": (is_huber, for_huber),
        "huber_scale": (is_huber, for_huber),
        "huber_schedule": (is_huber, for_huber),
        "ip_noise_gamma_random_strength": (bool(extra.ip_noise_gamma), "--ip_noise_gamma"),
    }
    return [
        f"--{field.name} {getattr(section, field.name)} has no effect without {needs[field.name][1]}"
        for section in (flow, loss, extra)
        for field in fields(section)
        if field.name in needs and not needs[field.name][0] and getattr(section, field.name) != field.default
    ]


def _flow_noising(flow: FlowConfig, extra: NoiseConfig, patch: int) -> FlowNoising:
    low = extra.min_timestep or 0
    high = NUM_TIMESTEPS if extra.max_timestep is None else extra.max_timestep
    if low >= high:
        raise UserError(
            f"--min_timestep is {low} and --max_timestep is {high}; the first must be the smaller"
        )
    return FlowNoising(
        sampling=flow.timestep_sampling,
        interpretation=flow.model_prediction_type,
        scheme=flow.weighting_scheme,
        shift=flow.discrete_flow_shift,
        sigmoid_scale=flow.sigmoid_scale,
        logit_mean=flow.logit_mean,
        logit_std=flow.logit_std,
        mode_scale=flow.mode_scale,
        patch=patch,
        low=low / NUM_TIMESTEPS,
        high=high / NUM_TIMESTEPS,
        perturbation=extra.ip_noise_gamma or 0.0,
        is_perturbation_random=extra.ip_noise_gamma_random_strength,
    )


def _element_loss(loss: LossConfig) -> ElementLoss:
    if loss.loss_type not in ("huber", "smooth_l1"):
        return ElementLoss(loss.loss_type)
    if loss.huber_schedule == "snr":
        raise UserError(
            f"--huber_schedule is snr, which flow models do not have; with --loss_type {loss.loss_type} "
            "use --huber_schedule exponential or constant"
        )
    return ElementLoss(loss.loss_type, loss.huber_schedule, loss.huber_c, loss.huber_scale)
