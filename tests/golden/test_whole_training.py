"""Whole scripts train whole models as sd-scripts does: the same losses, and the same weights in the end.

Noise and timesteps are given and the autoencoder gives its mean, so that what is compared is the way of the
data, the text encoders, the loss and the optimizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.cli.main import script
from sfumato.data.images.resizing import resize
from sfumato.diffusion import noise, timesteps
from sfumato.models.components.stable_diffusion.base import StableDiffusion
from sfumato.models.components.text_encoders import bare
from sfumato.models.components.unet import unet, unet_names
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sd.layouts import TEXT
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.families.sdxl.layout import TEXT_1, TEXT_2
from sfumato.models.interface.family import DENOISER
from tests import vocabularies
from tests.golden.derived import (
    arrays,
    cases,
    error,
    inputs,
    quantities,
    recorded_parts,
    rule,
    settings,
    weight,
)
from tests.runs import figures

NAME = "k_train_e2e_seed"
OFTEN = ("db_te", "xl_te", "ti_xl")
WHOLE = ("train_db", "fine_tune", "sdxl_train")
WORDS = ("train_textual_inversion", "sdxl_train_textual_inversion")


def cases_of(scripts: Sequence[str]) -> list[Any]:
    return [
        pytest.param(case, id=case["id"], marks=() if case["id"] in OFTEN else pytest.mark.slow)
        for case in cases(NAME)
        if case["script"] in scripts
    ]


SD_SHAPE = unet.UnetShape(4, 4, 2, (32, 64, 128, 128), (1, 1, 1, 0), 1, 32, 0, is_linear=False)
XL_SHAPE = unet.UnetShape(4, 4, 2, (32, 64, 128), (0, 2, 10), 10, 72, 1576, is_linear=True)
PARTS = {"unet": DENOISER, "te": TEXT, "te1": TEXT_1, "te2": TEXT_2}
STRETCHED = (128, 128)
"""What sd-scripts makes of each image of a data set of metadata that says so, whatever the image's shape."""
TOLERANCE = 1e-3
"""Of weights, relative to a tensor's largest; AdamW makes a whole step of a gradient that is nearly 0."""


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


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two models as folders in diffusers' layout, which tell how many heads there are."""
    place = tmp_path_factory.mktemp("bases")
    vocabularies.write_clip(place / "clip")
    return {kind: _write_base(place / kind, kind, place / "clip") for kind in ("sd", "sdxl")}


@pytest.mark.whole_model
@pytest.mark.parametrize("case", cases_of(WHOLE))
def test_a_script_run_whole_has_the_recorded_losses_and_weights(
    case: dict[str, Any], bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = run_whole(case, bases, tmp_path, monkeypatch)
    assert _far_off(case, kind, tmp_path / "out" / "o.safetensors") == []


@pytest.mark.whole_model
@pytest.mark.parametrize("case", cases_of(WORDS))
def test_a_word_has_the_recorded_losses_and_vectors(
    case: dict[str, Any], bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_whole(case, bases, tmp_path, monkeypatch)
    saved, numbers = load_file(tmp_path / "out" / "o.safetensors"), arrays(NAME)
    recorded = {name.rpartition("/")[2]: name for name in numbers if name.startswith(f"{case['id']}/file/")}
    assert saved.keys() == recorded.keys()
    for key, name in recorded.items():
        assert error(saved[key], numbers[name]) < TOLERANCE, key


def run_whole(
    case: dict[str, Any], bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Run a case's script with the noise that is given; compare losses, return the kind of the model."""
    given, encode = Given(case), StableDiffusion.encode_image
    monkeypatch.setattr(noise, "draw", given.noise)
    monkeypatch.setattr(timesteps, "whole", given.timesteps)
    monkeypatch.setattr(
        StableDiffusion, "encode_image", lambda self, vae, image, rng: encode(self, vae, image, None)
    )
    kind = "sdxl" if case["script"].startswith("sdxl") else "sd"
    _write_images(tmp_path, case["picture"], has_metadata="--in_json" in case["args"])
    assert script(case["script"], _arguments(case, tmp_path, bases[kind])) == 0
    losses = [line["loss"] for line in figures(tmp_path / "out" / "o.metrics.jsonl")]
    # Images that are resized differ by one level of brightness here and there, and steps add that up.
    assert losses[0] == pytest.approx(case["loss"][0], rel=1e-4)
    assert losses == pytest.approx(case["loss"], rel=1e-3)
    return kind


def _far_off(case: dict[str, Any], kind: str, saved: Path) -> list[str]:
    """Return the recorded tensors that were trained otherwise."""
    family = SdxlFamily(saved) if kind == "sdxl" else SdFamily(saved)
    numbers, rate = arrays(NAME), float(case["args"][case["args"].index("--learning_rate") + 1])
    states: dict[str, dict[str, Tensor]] = {}
    far = []
    for name in quantities(numbers, case["id"]):
        part, _, tensor = name.partition("/")
        if part not in PARTS:
            continue
        if part not in states:
            model = family.load(PARTS[part], torch.float32, torch.device("cpu"))
            states[part] = _named(model, is_published=kind == "sdxl" and part == "unet")
        for ours, theirs in recorded_parts(states[part][bare(tensor)], numbers, f"{case['id']}/{name}"):
            gap = (ours.double() - theirs.double()).abs().flatten()
            is_far = gap > TOLERANCE * theirs.abs().max()
            if is_far.sum() > max(1, len(gap) / 100) or gap.max() > 2 * rate * len(case["loss"]):
                far.append(f"{name}: {gap.max():.2e}, {int(is_far.sum())} of {len(gap)}")
    return far


def _named(model: nn.Module, *, is_published: bool) -> dict[str, Tensor]:
    state = {bare(name): tensor for name, tensor in model.state_dict().items()}
    names = unet_names.published_names(state) if is_published else {name: name for name in state}
    return {names[name]: tensor for name, tensor in state.items()}


def _arguments(case: dict[str, Any], folder: Path, base: Path) -> list[str]:
    texts = [text.replace("<dir>", str(folder)) for text in case["args"]]
    texts[texts.index("x.safetensors")] = str(base)
    return texts


def _write_images(folder: Path, picture: dict[str, Any], *, has_metadata: bool) -> None:
    width, height = picture["size"]
    pixels = np.clip(
        np.rint(128 + 50 * rule(f"input:img:kte.{picture['name']}", (height, width, 3)).numpy()), 0, 255
    )
    image = Image.fromarray(pixels.astype(np.uint8))
    if has_metadata:
        image = resize(image, STRETCHED)
    place = folder / "img" if has_metadata else folder / "img" / "1_x"
    place.mkdir(parents=True)
    image.save(place / "a.png")
    (place / "a.txt").write_text(picture["caption"], encoding="utf-8")
    entry = {"caption": picture["caption"], "train_resolution": STRETCHED}
    (folder / "meta.json").write_text(json.dumps({str(place / "a.png"): entry}), encoding="utf-8")


def _write_base(folder: Path, kind: str, tokenizer: Path) -> Path:
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


def _fill(model: nn.Module, key: Any, std: float) -> None:
    """Give a model the numbers that belong to its names."""
    values = {name: weight(key(name), tensor.shape, std) for name, tensor in _floats(model)}
    model.to_empty(device="cpu") if any(t.is_meta for _, t in _floats(model)) else None
    model.load_state_dict(values, strict=False)


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in model.state_dict().items() if tensor.is_floating_point())
