"""The small models, images and numbers of recorded runs of whole scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.diffusion import noise, timesteps
from sfumato.models.components.stable_diffusion.base import StableDiffusion
from sfumato.models.components.text_encoders import bare
from sfumato.models.components.unet import unet, unet_names
from tests.golden.derived import inputs, rule, settings, weight

NAME = "k_train_e2e_seed"
SD_SHAPE = unet.UnetShape(4, 4, 2, (32, 64, 128, 128), (1, 1, 1, 0), 1, 32, 0, is_linear=False)
XL_SHAPE = unet.UnetShape(4, 4, 2, (32, 64, 128), (0, 2, 10), 10, 72, 1576, is_linear=True)


@dataclass
class Given:
    """Noise and timesteps of a case, one after another."""

    case: dict[str, Any]
    drawn: list[tuple[int, ...]] = field(default_factory=list)

    def noise(self, shape: torch.Size, rng: torch.Generator) -> Tensor:
        self.drawn.append(tuple(shape))
        return inputs(f"kte.{self.case['id']}.noise{len(self.drawn) - 1}", shape)

    def timesteps(self, count: int, rng: torch.Generator, **range_: int) -> Tensor:
        return torch.tensor(self.case["timesteps"][len(self.drawn) - 1])


def give(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run have the noise and timesteps of a case, and the means that autoencoders make."""
    given, encode = Given(case), StableDiffusion.encode_image
    monkeypatch.setattr(noise, "draw", given.noise)
    monkeypatch.setattr(timesteps, "whole", given.timesteps)
    monkeypatch.setattr(
        StableDiffusion, "encode_image", lambda self, vae, image, rng: encode(self, vae, image, None)
    )


def image_of(name: str, size: Sequence[int]) -> Image.Image:
    """Return the image that belongs to a name, (width, height) large."""
    width, height = size
    noise = 128 + 50 * rule(f"input:img:kte.{name}", (height, width, 3)).numpy()
    return Image.fromarray(np.clip(np.rint(noise), 0, 255).astype(np.uint8))


def write_base(folder: Path, kind: str, tokenizer: Path) -> Path:
    """Write a model with the numbers that belong to its names."""
    from diffusers import AutoencoderKL

    told = settings(NAME)["models"]
    shape, is_xl = (XL_SHAPE, True) if kind == "sdxl" else (SD_SHAPE, False)
    denoiser = unet.build(shape)
    published = unet_names.published_names(denoiser.state_dict()) if is_xl else {}
    _fill(denoiser, lambda name: published.get(name, name), told[kind]["unet"]["weight_std"])
    denoiser.save_pretrained(folder / "unet")
    keys = {"te1": "text_encoder", "te2": "text_encoder_2"} if is_xl else {"te": "text_encoder"}
    for key, place in keys.items():
        _clip(told["sd"]["te"] if key == "te1" else told[kind][key]).save_pretrained(folder / place)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=told["vae"]["block_out_channels"],
        layers_per_block=1,
        latent_channels=4,
    )
    _fill(vae, lambda name: "vae:" + name, told["vae"]["std"])
    vae.save_pretrained(folder / "vae")
    for place in keys.values():
        target = folder / place.replace("text_encoder", "tokenizer")
        target.mkdir()
        for file in tokenizer.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    return folder


def _clip(told: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    has_projection = "projection_dim" in told
    config = CLIPTextConfig(
        vocab_size=told.get("vocab", 49408),
        hidden_size=told["hidden"],
        intermediate_size=told["intermediate"],
        num_hidden_layers=told["layers"],
        num_attention_heads=told["heads"],
        hidden_act=told["act"],
        projection_dim=told.get("projection_dim", told["hidden"]),
        bos_token_id=49406,
        eos_token_id=49407,
    )
    model = CLIPTextModelWithProjection(config) if has_projection else CLIPTextModel(config)

    def key(name: str) -> str:
        return told["key_prefix"] + (
            name if name.startswith("text_projection") else f"text_model.{bare(name)}"
        )

    _fill(model, key, told["std"])
    return model


def _fill(model: nn.Module, key: Callable[[str], str], std: float) -> None:
    """Give a model the numbers that belong to its names."""
    values = {name: weight(key(name), tensor.shape, std) for name, tensor in _floats(model)}
    model.to_empty(device="cpu") if any(t.is_meta for _, t in _floats(model)) else None
    model.load_state_dict(values, strict=False)


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in model.state_dict().items() if tensor.is_floating_point())
