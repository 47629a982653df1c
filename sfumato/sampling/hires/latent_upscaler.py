"""The latent upscaler: an image is enlarged with LANCZOS, and a network sharpens its latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.data.images import images
from sfumato.errors import UserError
from sfumato.models.components import autoencoder
from sfumato.sampling.hires.latent_network import LatentNetwork, load_network

SCALE = 0.18215
"""Of the latents of Stable Diffusion 1 and 2, for which the network was trained."""


class LatentUpscaler:
    """Meets the interface of upscaler modules; see `upscaler_modules.Upscaler`."""

    def __init__(self, network: LatentNetwork) -> None:
        self._network = network

    def to(self, target: Any) -> LatentUpscaler:
        """Move the network to a device or a dtype."""
        self._network.to(target)
        return self

    def support_latents(self) -> bool:
        """Say that it is images that are enlarged."""
        return False

    @torch.no_grad()
    def upscale(
        self,
        vae: nn.Module,
        images: Sequence[Image.Image],
        latents: None,
        dtype: torch.dtype,
        width: int,
        height: int,
        batch_size: int = 1,
        vae_batch_size: int = 1,
    ) -> Tensor:
        """Return scaled latents (B, 4, height / 8, width / 8) of images; `latents` and `dtype` are not used.

        Args:
            vae: an autoencoder of diffusers, for Stable Diffusion 1 or 2.
        """
        rows = enlarged(images, (width, height)).split(vae_batch_size)
        own = next(self._network.parameters())
        device = next(vae.parameters()).device
        raw = torch.cat([autoencoder.encode(vae, row.to(device), None) for row in rows])
        sharpened = [self._network(row) for row in raw.to(own.device, own.dtype).split(batch_size)]
        return torch.cat(sharpened) * SCALE


def create_upscaler(**kwargs: str) -> LatentUpscaler:
    """Return the upscaler whose weights lie in the file `weights`.

    Raises:
        UserError: no file is named, another argument is, or the file is none of a latent upscaler.
    """
    weights = kwargs.pop("weights", None)
    if kwargs or not weights:
        said = ", ".join(kwargs) or "nothing"
        raise UserError(f"the latent upscaler is told {said}; give weights=FILE, and nothing else")
    return LatentUpscaler(load_network(Path(weights)))


def enlarged(pictures: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """Return pixels (B, 3, H, W) in [-1, 1] of images that are brought to (width, height) with LANCZOS."""
    lanczos = Image.Resampling.LANCZOS
    return torch.stack([images.to_tensor(picture.resize(size, lanczos)) for picture in pictures])
