"""The loss of a batch: what is learned besides is all the same to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato import seeds
from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.run import Run
from sfumato.data.batches.collate import Batch
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import DENOISER, VAE, Family, HasFlowTraining, is_inpainting
from sfumato.models.interface.parts import Parts
from sfumato.training.core.precision import Precision
from sfumato.training.trainables.conditions import Condition, Words
from sfumato.training.trainables.inpainting import MaskedImages
from sfumato.training.trainables.objective import Objective, StepLoss, objective_for


def objective_of(run: Run, family: Family) -> Objective:
    """Return what a step measures, as the run's options and the family's kind of prediction have it."""
    own = family.flow_training if isinstance(family, HasFlowTraining) else None
    return objective_for(run, family.prediction, family.latents.patch, own)


def denoising_for(
    run: Run,
    family: Family,
    parts: Parts,
    precision: Precision,
    live_encoders: Sequence[str],
    trained_encoders: Sequence[str] = (),
) -> Denoising:
    """Return what a run's options ask for: the denoiser listens to `Words` and, if it inpaints, to masks."""
    guidance = run.get(FlowConfig, FlowConfig()).guidance_scale
    words = Words(family, parts, precision.device, live_encoders, trained_encoders, guidance)
    condition = MaskedImages(words, family, parts) if is_inpainting(family) else words
    return Denoising(family, parts, precision, objective_of(run, family), condition)


Steer = Callable[[Tensor, Tensor, Conditioning], Conditioning]
"""`steer(noisy, timesteps, conditioning) -> conditioning`: what a network beside the denoiser makes of what
this is asked for, (B, C, H/8, W/8) and (B,) as `Family.predict` has them."""


def unsteered(noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Conditioning:
    """Return the conditioning as it is; a `Steer`."""
    return conditioning


@dataclass
class Denoising:
    """From a batch to the loss of each of its images, by the models as they are.

    Attributes:
        condition: makes what the denoiser listens to; a trainable hands in one that adds to `Words`.
        steer: adds to that what depends on what the denoiser is asked for.
    """

    family: Family
    parts: Parts
    precision: Precision
    objective: Objective
    condition: Condition
    steer: Steer = unsteered

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image of `batch`; noise and timesteps come from `rng`."""
        device = self.precision.device
        batch = batch.to(device, non_blocking=device.type == "cuda")
        with self.precision.autocast():
            latents = self._latents(batch, rng)
            conditioning = self.condition(batch, _derived("conditioning", rng))
            drawn = _derived("prediction", rng)

            def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
                told = self.steer(noisy, timesteps, conditioning)
                return self.family.predict(self.parts[DENOISER], noisy, timesteps, told, drawn)

            return self.objective(predict, latents, rng, mask=batch.masks, weights=batch.loss_weights)

    def _latents(self, batch: Batch, rng: torch.Generator) -> Tensor:
        if batch.latents is not None:
            return batch.latents
        assert batch.pixels is not None
        with torch.no_grad():
            posterior = _derived("posterior", rng)
            return self.family.encode_image(self.parts[VAE], batch.pixels, posterior).float()


def _derived(purpose: str, rng: torch.Generator) -> torch.Generator:
    """Return a generator of its own: noise and timesteps stay the same, whatever else is drawn in a step."""
    return torch.Generator().manual_seed(seeds.derive(purpose, rng.initial_seed()))
