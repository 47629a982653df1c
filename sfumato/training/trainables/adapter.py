"""Learn an adapter (LoRA and its kin) on a frozen model of any family."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato import seeds
from sfumato.adapters.network import Network
from sfumato.data.collate import Batch
from sfumato.models.family import DENOISER, VAE, Conditioning, Family, ImageSizes, Parts
from sfumato.training.objective import Objective, StepLoss
from sfumato.training.precision import Precision


@dataclass
class AdapterTraining:
    """The loss of one batch as seen by an adapter; a `Trainable`.

    Attributes:
        network: attached to the parts it adapts.
        live_encoders: text encoders that run in every step, because their outputs are not cached.
        trained_encoders: those of them that the adapter changes.
        guidance: distilled guidance scale that the model is told.
    """

    family: Family
    parts: Parts
    network: Network
    objective: Objective
    precision: Precision
    live_encoders: Sequence[str] = ()
    trained_encoders: Sequence[str] = ()
    guidance: float = 1.0

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each picture of `batch`."""
        batch = batch.to(self.precision.device, non_blocking=True)
        self.network.set_strength(batch.network_multipliers)
        with self.precision.autocast():
            latents = self._latents(batch, rng)
            conditioning = self._conditioning(batch)

            def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
                return self.family.predict(self.parts[DENOISER], noisy, timesteps, conditioning)

            return self.objective(
                predict, latents, rng, mask=batch.masks, loss_weights=batch.loss_weights
            )

    def _latents(self, batch: Batch, rng: torch.Generator) -> Tensor:
        if batch.latents is not None:
            return batch.latents
        assert batch.pixels is not None
        # A generator of its own: noise and timesteps are the same whether or not latents are cached.
        posterior = torch.Generator().manual_seed(seeds.derive("posterior", rng.initial_seed()))
        vae = self.parts[VAE]
        pixels = batch.pixels.to(next(vae.parameters()).dtype)
        with torch.no_grad():
            return self.family.encode_image(vae, pixels, posterior).float()

    def _conditioning(self, batch: Batch) -> Conditioning:
        text = dict(batch.text)
        if self.live_encoders:
            tokens = {k: v.to(self.precision.device) for k, v in self.family.tokenize(batch.captions).items()}
            for name in self.live_encoders:
                with nullcontext() if name in self.trained_encoders else torch.no_grad():
                    text |= self.family.encode_text({name: self.parts[name]}, tokens)
        guidance = torch.full((len(batch),), self.guidance, device=self.precision.device)
        sizes = ImageSizes(batch.original_sizes, batch.crop_offsets, batch.target_sizes)
        return Conditioning(text, guidance, sizes)
