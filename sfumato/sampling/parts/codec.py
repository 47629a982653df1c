"""Pixels to latents and back, with the autoencoder of a model."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sfumato.models.interface.family import VAE, Family
from sfumato.sampling.parts.part_runner import PartRunner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Codec:
    """Encodes and decodes a few images at once.

    Attributes:
        batch_size: images at once: decoding takes more memory than all before it.
    """

    family: Family
    runner: PartRunner
    batch_size: int = 1

    def encode(self, pixels: Tensor) -> Tensor:
        """Return scaled latents (B, C, H/8, W/8), float32, of pixels (B, 3, H, W) in [-1, 1]."""
        device, encode = self.runner.parts.device, self.family.encode_image
        rows = pixels.to(device).split(self.batch_size)
        latents = self.runner.run(VAE, lambda vae: [encode(vae, row, None) for row in rows])
        return torch.cat(latents).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in about [-1, 1] of scaled latents (B, C, H/8, W/8)."""
        rows, decode = latents.split(self.batch_size), self.family.decode_image
        return torch.cat(self.runner.run(VAE, lambda vae: [decode(vae, row) for row in rows]))


def to_image(pixels: Tensor) -> Image.Image:
    """Return pixels (3, H, W) in [-1, 1] as an 8-bit RGB image."""
    values = pixels.float().cpu()
    if not values.isfinite().all():
        logger.warning("the image holds values that are no numbers: compute in bf16 or fp32, not in fp16")
        values = values.nan_to_num(-1.0)
    bytes_ = (values.clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy(), "RGB")
