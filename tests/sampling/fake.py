"""A family small enough to check by hand."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import DENOISER, VAE, Prediction
from sfumato.models.interface.identity import ModelIdentity, SamplingDefaults
from sfumato.models.interface.latents import CacheFormat, LatentSpace
from sfumato.models.interface.targets import AdapterTarget

WIDTH = 8


class FakeDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.read = nn.Linear(2 * WIDTH, 4)
        self.calls: list[dict[str, object]] = []

    def forward(self, noisy: Tensor, timesteps: Tensor, words: Tensor, guidance: Tensor) -> Tensor:
        self.calls.append({"batch": len(noisy), "timestep": float(timesteps[0])})
        told = self.read(words.to(self.read.weight.dtype)) + guidance[:, None] * 0.1
        mixed = self.mix(noisy.movedim(1, -1)).movedim(-1, 1)
        self.calls[-1]["dtype"] = mixed.dtype
        return mixed + told[:, :, None, None]


class FakeFamily:
    """Weights are seeded by the part's name, so that every load gives the same module."""

    latents = LatentSpace(channels=4, downscale=8, scale=1.0, patch=2)
    prediction = Prediction.FLOW
    identity = ModelIdentity("fake", "fake", "fake", (64, 64))
    sampling = SamplingDefaults(steps=3, guidance=2.0, scale="guidance")
    text_outputs: Mapping[str, tuple[str, ...]] = {"first": ("a",), "second": ("b", "mask")}
    caches = CacheFormat("_fake.npz", "_fake_te.npz")

    def __init__(self) -> None:
        self.encoded: list[tuple[str, int]] = []

    def check(self, parts: Sequence[str]) -> None:
        assert set(parts) <= {DENOISER, VAE, *self.text_outputs}

    def source(self, part: str) -> Path | None:
        return Path(f"{part}.safetensors")

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(part.encode()))
            module = FakeDenoiser() if part == DENOISER else nn.Linear(4 if part == VAE else WIDTH, WIDTH)
        return module.requires_grad_(False).to(device, dtype)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        ids = torch.tensor([[zlib.crc32(f"{c}{i}".encode()) % 97 for i in range(WIDTH)] for c in captions])
        return {"first": ids, "second": ids + 1, "second_mask": torch.ones_like(ids)}

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        (name,) = encoders
        self.encoded.append((name, len(tokens[name])))
        output = encoders[name](tokens[name].to(next(encoders[name].parameters()).dtype) / 50)
        return {"a": output} if name == "first" else {"b": output, "mask": tokens["second_mask"]}

    def encode_image(self, vae: nn.Module, pixels: Tensor, rng: torch.Generator | None) -> Tensor:
        raise AssertionError("making an image encodes none")

    def decode_image(self, vae: nn.Module, latents: Tensor) -> Tensor:
        values = vae(latents.movedim(1, -1)).movedim(-1, 1)[:, :3]
        return nn.functional.interpolate(values.float(), scale_factor=8).tanh()

    def predict(
        self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        text = conditioning.text
        assert text["mask"].dtype == torch.int64
        words = torch.cat([text["a"], text["b"]], dim=-1)
        return denoiser(noisy, timesteps, words, conditioning.guidance)

    def sampling_sigmas(self, num_steps: int, width: int, height: int) -> Tensor:
        return torch.linspace(1, 0, num_steps + 1)

    def blocks(self, denoiser: nn.Module) -> list[nn.Module]:
        return []

    def adapter_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        if part == DENOISER:
            yield AdapterTarget("unet_mix", model.get_submodule("mix"), part)
            yield AdapterTarget("unet_read", model.get_submodule("read"), part)
        elif part == "first":
            yield AdapterTarget("te1_all", model, part)

    def save(
        self, part: str, model: nn.Module, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> None:
        raise AssertionError("making an image saves no model")
