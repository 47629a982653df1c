"""The toy base that ships with the package: where its files lie and how it is asked for images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from sfumato.demo.photographs import SIZE_PX
from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.parts import Parts
from sfumato.nn.device import default_device
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request

FOLDER = Path(__file__).parent / "base"
TRANSFORMER = FOLDER / "flux-toy.safetensors"
CLIP_L = FOLDER / "clip_l.safetensors"
T5XXL = FOLDER / "t5xxl.safetensors"
AUTOENCODER = FOLDER / "ae.safetensors"
TOKENIZERS = FOLDER / "tokenizers"
"""Found by themselves, because they lie beside the transformer."""

TEXT_LENGTH = 16
"""Tokens for T5; no caption of the demo has more."""

SEED = 7
NUM_STEPS = 16


def training_options() -> list[str]:
    """Return the options of a training run that name the base."""
    return ["--pretrained_model_name_or_path", str(TRANSFORMER), *_encoders()]


def generation_options() -> list[str]:
    """Return the options of `sfumato generate` that make an image as `generate` makes it."""
    size = ["--width", str(SIZE_PX), "--height", str(SIZE_PX)]
    how = ["--steps", str(NUM_STEPS), "--seed", str(SEED), "--guidance", "1", "--dtype", "float32"]
    return ["--ckpt_path", str(TRANSFORMER), *_encoders(), "--apply_t5_attn_mask", *size, *how]


def generate(prompts: Sequence[str], lora: Path | None = None, strength: float = 1.0) -> list[Image.Image]:
    """Return the base's image for each prompt, with a LoRA at work on it if one is given."""
    family = FluxFamily(
        TRANSFORMER, CLIP_L, T5XXL, AUTOENCODER, t5_max_length=TEXT_LENGTH, apply_t5_mask=True
    )
    family.check([*family.text_outputs, DENOISER])
    files = [AdapterFile(lora, strength)] if lora else []
    pipeline = Pipeline(
        family,
        Parts(family, default_device()),
        dtype=torch.float32,
        on_load=Attachments(family, files, dtype=torch.float32),
    )
    return [pipeline(request) for request in _requests(prompts)]


def _requests(prompts: Iterable[str]) -> Iterable[Request]:
    for prompt in prompts:
        yield Request(prompt, width=SIZE_PX, height=SIZE_PX, steps=NUM_STEPS, seed=SEED, guidance=1.0)


def _encoders() -> list[str]:
    return ["--clip_l", str(CLIP_L), "--t5xxl", str(T5XXL), "--ae", str(AUTOENCODER)]
