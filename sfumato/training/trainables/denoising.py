"""The loss of a batch: what is learned besides is all the same to it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato import seeds
from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.run import Run
from sfumato.data.batches.collate import Batch
from sfumato.models.interface.conditioning import Conditioning, ImageSizes
from sfumato.models.interface.family import DENOISER, VAE, Family
from sfumato.models.interface.parts import Parts
from sfumato.training.core.precision import Precision
from sfumato.training.trainables.objective import Objective, StepLoss, objective_for
from sfumato.transfer import to_device


def objective_of(run: Run, family: Family) -> Objective:
    """Return what a step measures, as the run's options and the family's kind of prediction have it."""
    return objective_for(run, family.prediction, family.latents.patch)


@dataclass
class Denoising:
    """From a batch to the loss of each of its images, by the models as they are.

    Attributes:
        live_encoders: text encoders that run in every step, because their outputs are not cached.
        trained_encoders: those of them that gradients go through.
    """

    run: Run
    family: Family
    parts: Parts
    precision: Precision
    live_encoders: Sequence[str]
    trained_encoders: Sequence[str] = ()
    objective: Objective = field(init=False)

    def __post_init__(self) -> None:
        self.objective = objective_of(self.run, self.family)

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image of `batch`; noise and timesteps come from `rng`."""
        device = self.precision.device
        batch = batch.to(device, non_blocking=device.type == "cuda")
        with self.precision.autocast():
            latents = self._latents(batch, rng)
            conditioning = self._conditioning(batch)

            def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
                return self.family.predict(self.parts[DENOISER], noisy, timesteps, conditioning)

            return self.objective(predict, latents, rng, mask=batch.masks, weights=batch.loss_weights)

    def _latents(self, batch: Batch, rng: torch.Generator) -> Tensor:
        if batch.latents is not None:
            return batch.latents
        assert batch.pixels is not None
        # A generator of its own: noise and timesteps are the same whether or not latents are cached.
        posterior = torch.Generator().manual_seed(seeds.derive("posterior", rng.initial_seed()))
        with torch.no_grad():
            return self.family.encode_image(self.parts[VAE], batch.pixels, posterior).float()

    def _conditioning(self, batch: Batch) -> Conditioning:
        text = dict(batch.text)
        if self.live_encoders:
            tokens = self.family.tokenize(batch.captions)
            tokens = {name: to_device(ids, self.precision.device) for name, ids in tokens.items()}
            for name in self.live_encoders:
                with nullcontext() if name in self.trained_encoders else torch.no_grad():
                    text |= self.family.encode_text({name: self.parts[name]}, tokens)
        guidance = self.run[FlowConfig].guidance_scale
        sizes = ImageSizes(batch.original_sizes, batch.crop_offsets, batch.target_sizes)
        return Conditioning(text, torch.full((len(batch),), guidance, device=self.precision.device), sizes)
