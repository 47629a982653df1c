"""A family's model as samplers and guides know models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import Family
from sfumato.sampling.spaces import Space


@dataclass(frozen=True)
class Denoiser:
    """A family's model as samplers know models; a `Denoise`.

    Attributes:
        conditioning: of as many rows as are denoised.
    """

    family: Family
    model: nn.Module
    space: Space
    conditioning: Conditioning

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the clean latents that the model predicts for x."""
        timesteps = torch.full((x.shape[0],), self.space.timestep(sigma), device=x.device)
        output = self.family.predict(self.model, self.space.shown(x, sigma), timesteps, self.conditioning)
        return self.space.clean(output.float(), x, sigma)
