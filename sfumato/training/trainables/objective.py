"""What one training step measures: noise in, a prediction out, one loss per image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.diffusion import losses
from sfumato.diffusion.flow_training import FlowTraining
from sfumato.diffusion.schedules import NUM_TIMESTEPS
from sfumato.errors import UserError
from sfumato.models.interface.family import Prediction
from sfumato.training.trainables.noising import DdpmNoising, FlowNoising, NoiseShape, Noising, SnrWeights
from sfumato.transfer import to_device

logger = logging.getLogger(__name__)

Predict = Callable[[Tensor, Tensor], Tensor]
"""`predict(noisy, timesteps) -> output`: (B, C, H/8, W/8) in the latents' dtype, (B,) float32 in [0, 1000],
and an output shaped like `noisy`."""


@dataclass(frozen=True)
class StepLoss:
    """What a step measured.

    Attributes:
        per_sample: (B,) float32, each image's loss; the step's loss is their mean.
        timesteps: (B,) float32 in [0, 1000], on the same device.
    """

    per_sample: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class ElementLoss:
    """How the distance between prediction and target is measured, element by element.

    Attributes:
        kind: `l1`, `l2`, or two that grow linearly above a threshold.
        schedule: how that threshold depends on the timestep or, for `snr`, on the ratio of noise to signal.
        c, scale: the threshold's parameters; see `diffusion/losses.py`.
    """

    kind: Literal["l1", "l2", "huber", "smooth_l1"] = "l2"
    schedule: Literal["constant", "exponential", "snr"] = "constant"
    c: float = 0.1
    scale: float = 1.0

    def __call__(self, prediction: Tensor, target: Tensor, timesteps: Tensor, levels: Tensor) -> Tensor:
        """Return (B, C, H/8, W/8), unreduced.

        Args:
            prediction, target: float32 tensors of that shape.
            timesteps, levels: (B,), as in `Noised`.
        """
        if self.kind == "l1":
            return losses.l1(prediction, target)
        if self.kind == "l2":
            return losses.l2(prediction, target)
        element = losses.huber if self.kind == "huber" else losses.smooth_l1
        return element(prediction, target, self.threshold(timesteps, levels))

    def threshold(self, timesteps: Tensor, levels: Tensor) -> Tensor:
        """Return (B,), where the loss turns from square to linear."""
        if self.schedule == "snr":
            return losses.snr_threshold(levels, self.c)
        if self.schedule == "exponential":
            return losses.exponential_threshold(timesteps, self.c, self.scale)
        return losses.constant_threshold(timesteps, self.c, self.scale)


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
            weights: (B,), each image's weight (regularisation images have another than the rest).
        """
        noised = self.noising(latents.float(), rng)
        output = predict(noised.noisy.to(latents.dtype), noised.timesteps).float()
        answer = self.noising.read(output, noised)
        loss = self.loss(answer, noised.target, noised.timesteps, noised.levels)
        if mask is not None:
            loss = losses.masked(loss, to_device(mask, loss.device))
        per_sample = loss.mean(dim=tuple(range(1, loss.ndim)))
        for factor in (self.noising.weigh(noised), weights):
            if factor is not None:
                per_sample = per_sample * to_device(factor, loss.device)
        return StepLoss(per_sample, noised.timesteps)


def objective_for(
    run: Run, prediction: Prediction, patch: int = 2, own: FlowTraining | None = None
) -> Objective:
    """Return the objective that a run's options describe.

    Args:
        prediction: what the family's denoiser predicts.
        patch: `LatentSpace.patch` of the family.
        own: how the family is trained, if its scripts have options of their own for it.

    Raises:
        UserError: options contradict each other or the kind of model.
    """
    loss, extra = run[LossConfig], run[NoiseConfig]
    if own is not None:
        return Objective(_own_noising(own, extra, patch), _flow_loss(loss))
    if prediction is Prediction.FLOW:
        return Objective(_flow_noising(run[FlowConfig], extra, patch), _flow_loss(loss))
    if extra.zero_terminal_snr and prediction is Prediction.EPSILON:
        logger.warning(
            "--zero_terminal_snr with a noise-predicting model: at the last timestep it is asked for what it "
            "is shown; the option is meant for --v_parameterization"
        )
    is_velocity = prediction is Prediction.VELOCITY
    _check_weights(loss, is_velocity)
    return Objective(_ddpm_noising(loss, extra, is_velocity), _element_loss(loss))


def _check_weights(loss: LossConfig, is_velocity: bool) -> None:
    """Raise UserError for a weight that is about models of the other kind."""
    if is_velocity and loss.v_pred_like_loss:
        raise UserError(
            f"--v_pred_like_loss {loss.v_pred_like_loss} is about noise-predicting models, and this one "
            "predicts velocity: it has that loss already; leave it out"
        )
    if loss.scale_v_pred_loss_like_noise_pred and not is_velocity:
        raise UserError(
            "--scale_v_pred_loss_like_noise_pred needs a model that predicts velocity: --v_parameterization, "
            "or a base whose files say so"
        )


def _ddpm_noising(loss: LossConfig, extra: NoiseConfig, is_velocity: bool) -> DdpmNoising:
    low, high = _timestep_range(extra)
    return DdpmNoising(
        is_velocity=is_velocity,
        zero_terminal=extra.zero_terminal_snr,
        shape=NoiseShape(
            offset=extra.noise_offset or 0.0,
            is_offset_random=extra.noise_offset_random_strength,
            adaptive_scale=extra.adaptive_noise_scale or 0.0,
            pyramid_levels=extra.multires_noise_iterations or 0,
            pyramid_discount=extra.multires_noise_discount,
        ),
        weights=SnrWeights(
            is_velocity=is_velocity,
            min_snr_gamma=loss.min_snr_gamma,
            is_noise_like=loss.scale_v_pred_loss_like_noise_pred,
            velocity_like=loss.v_pred_like_loss,
            is_debiased=loss.debiased_estimation_loss,
        ),
        low=low,
        high=high,
        perturbation=extra.ip_noise_gamma or 0.0,
        is_perturbation_random=extra.ip_noise_gamma_random_strength,
    )


def _flow_noising(flow: FlowConfig, extra: NoiseConfig, patch: int) -> FlowNoising:
    low, high = _timestep_range(extra)
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


def _own_noising(own: FlowTraining, extra: NoiseConfig, patch: int) -> FlowNoising:
    return replace(
        _flow_noising(FlowConfig(), extra, patch),
        scheme=own.scheme,
        logit_mean=own.logit_mean,
        logit_std=own.logit_std,
        mode_scale=own.mode_scale,
        table=own.levels,
        is_clean_wanted=True,
    )


def _timestep_range(extra: NoiseConfig) -> tuple[int, int]:
    low = extra.min_timestep or 0
    high = NUM_TIMESTEPS if extra.max_timestep is None else extra.max_timestep
    if low >= high:
        raise UserError(
            f"--min_timestep is {low} and --max_timestep is {high}; the first must be the smaller"
        )
    return low, high


def _flow_loss(loss: LossConfig) -> ElementLoss:
    if loss.loss_type in ("huber", "smooth_l1") and loss.huber_schedule == "snr":
        raise UserError(
            f"--huber_schedule is snr, which flow models do not have; with --loss_type {loss.loss_type} "
            "use --huber_schedule exponential or constant"
        )
    return _element_loss(loss)


def _element_loss(loss: LossConfig) -> ElementLoss:
    if loss.loss_type not in ("huber", "smooth_l1"):
        return ElementLoss(loss.loss_type)
    return ElementLoss(loss.loss_type, loss.huber_schedule, loss.huber_c, loss.huber_scale)
