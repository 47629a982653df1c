"""A family small enough to be looked through: a linear VAE and two text encoders that count letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sfumato.models.interface.family import VAE, Family
from sfumato.models.interface.latents import CacheFormat, LatentSpace
from sfumato.models.interface.parts import Parts

LENGTH = 6


class FakeFamily:
    """Offers what caching asks of a family; `sources` are the files that its parts come from."""

    latents = LatentSpace(channels=4, downscale=8, scale=0.5, shift=0.1, patch=2)
    text_outputs: Mapping[str, tuple[str, ...]] = {"clip": ("pooled",), "t5": ("t5_out", "t5_mask")}
    caches = CacheFormat("_fake.npz", "_fake_te.npz")

    def __init__(self, folder: Path, mask: bool = False) -> None:
        self.mask = mask
        self.num_encoded: list[int] = []
        self.sources = {part: folder / f"{part}.safetensors" for part in (VAE, "clip", "t5")}
        for part, path in self.sources.items():
            if not path.exists():
                path.write_bytes(part.encode() * 100)

    def source(self, part: str) -> Path | None:
        return self.sources[part]

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        torch.manual_seed(len(self.source(part).read_bytes()))
        return (
            nn.Conv2d(3, 4, 8, 8).to(device, dtype) if part == VAE else nn.Embedding(300, 5).to(device, dtype)
        )

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        rows = [[ord(char) % 300 for char in caption[:LENGTH].ljust(LENGTH)] for caption in captions]
        return {
            "clip": torch.tensor(rows),
            "t5": torch.tensor(rows),
            "t5_mask": torch.ones(len(rows), LENGTH),
        }

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        found = {}
        if "clip" in encoders:
            found["pooled"] = encoders["clip"](tokens["clip"]).mean(1)
        if "t5" in encoders:
            found |= {"t5_out": encoders["t5"](tokens["t5"]), "t5_mask": tokens["t5_mask"].long()}
        return found

    def encode_image(self, vae: nn.Module, pixels: Tensor, rng: torch.Generator | None) -> Tensor:
        self.num_encoded.append(len(pixels))
        mean = vae(pixels.to(next(vae.parameters()).dtype)).float()
        return mean + 0.01 * torch.randn(mean.shape, generator=rng)

    def cache_extras(self) -> Mapping[str, Tensor]:
        return {"txt_ids": torch.zeros(LENGTH, 3), "apply_mask": torch.tensor(self.mask)}


def family(folder: Path, **options: Any) -> tuple[FakeFamily, Family, Parts]:
    """Return the fake, the same as a Family, and its parts."""
    fake = FakeFamily(folder, **options)
    return fake, cast(Family, fake), Parts(cast(Family, fake), torch.device("cpu"))
