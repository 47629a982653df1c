"""LoRA files that the scripts train change diffusers' Stable Diffusion 1, 2 and XL as they change ours.

Each file is made by a whole training; the models are tiny and have the topology of the real ones.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.cli.main import script
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.interface.conditioning import Conditioning, ImageSizes
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.registry.families import family_for
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments
from tests import tiny
from tests.pipelines import pipeline_from
from tests.runs import others_slow

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and peft

LIMIT = 1e-3
PROMPT = "a red cat, photo"
FAMILIES = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl"}
TRAINING = shlex.split(
    "--network_module networks.lora --network_dim 4 --network_alpha 2 --learning_rate 5e-2 "
    "--max_train_steps 4 --resolution 64 --caption_extension .txt --seed 1 --max_data_loader_n_workers 0"
)
CONV = "--network_args conv_dim=2 conv_alpha=1"


@dataclass(frozen=True)
class Compared:
    """One tiny model, the data it is trained on, and the noisy latents it is asked about."""

    kind: str
    base: tiny.TinyCheckpoint
    images: Path

    def family(self) -> Family:
        config = ModelConfig(
            pretrained_model_name_or_path=str(self.base.path),
            tokenizer_cache_dir=str(self.base.tokenizers),
            v2=self.kind == "sd2",
        )
        return family_for(Run("some_script", FAMILIES[self.kind], [config]))

    def train(self, folder: Path, *options: str) -> Path:
        name = "sdxl_train_network" if self.kind == "sdxl" else "train_network"
        places = ["--train_data_dir", str(self.images), "--output_dir", str(folder)]
        arguments = [*self.base.arguments, *places, "--output_name", "lora", *TRAINING, *options]
        assert script(name, arguments) == 0
        return folder / "lora.safetensors"


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp(request.param)
    tiny.pictures(folder / "data" / "1_cat", 2)
    make: Any = tiny.sdxl if request.param == "sdxl" else tiny.sd
    base = make(folder, **({"v2": True} if request.param == "sd2" else {}))
    return Compared(request.param, base, folder / "data")


@dataclass(frozen=True)
class Outputs:
    """What a model makes of the prompt, and of noisy latents beside a fixed text.

    Attributes:
        noise: (1, 4, 6, 8), the UNet's output.
        words: (1, 77, W), all text encoders' states.
        pooled: (1, P), where the model has it.
    """

    noise: Tensor
    words: Tensor
    pooled: Tensor | None


def ours(model: Compared, file: Path | None) -> Outputs:
    family = model.family()
    attach = Attachments(family, [AdapterFile(file)] if file else [], dtype=torch.float32)
    parts: dict[str, Any] = {}
    for part in (*family.text_outputs, DENOISER):
        parts[part] = family.load(part, torch.float32, torch.device("cpu"))
        attach(part, parts[part])
    with torch.no_grad():
        texts = family.encode_text(parts, family.tokenize([PROMPT]))
        noisy, words, pooled = inputs(model.kind)
        if model.kind == "sdxl":
            split = tiny.CLIP_WIDTH
            told = {"hidden_state1": words[..., :split], "hidden_state2": words[..., split:], "pool2": pooled}
        else:
            told = {"hidden_state": words}
        conditioning = Conditioning(text=told, sizes=framing())
        noise = family.predict(parts[DENOISER], noisy, torch.tensor([300.0]), conditioning)
    states = [texts[name] for name in texts if name.startswith("hidden_state")]
    return Outputs(noise, torch.cat(states, -1), texts.get("pool2"))


def theirs(model: Compared, file: Path | None) -> Outputs:
    pipeline = pipeline_from(model.base.path, model.kind, model.base.tokenizers)
    if file:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    noisy, words, pooled = inputs(model.kind)
    with torch.no_grad():
        texts = pipeline.encode_prompt(
            PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        told = {"text_embeds": pooled, "time_ids": torch.tensor([[48.0, 64, 0, 0, 48, 64]])}
        noise = pipeline.unet(
            noisy, 300, words, added_cond_kwargs=told if model.kind == "sdxl" else None
        ).sample
    return Outputs(noise, texts[0], texts[2] if model.kind == "sdxl" else None)


def inputs(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    width = tiny.CLIP_WIDTH + (tiny.CLIP_G_WIDTH if kind == "sdxl" else 0)
    shapes = (1, 4, 6, 8), (1, 77, width), (1, tiny.CLIP_G_WIDTH)
    noisy, words, pooled = (torch.randn(shape, generator=rng) for shape in shapes)
    return noisy, words, pooled


def framing() -> ImageSizes:
    size = torch.tensor([[48, 64]])
    return ImageSizes(original=size, crop=torch.zeros_like(size), target=size)


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("model", "options"),
    others_slow(product(FAMILIES, ["", CONV]), [("sd1", CONV), ("sd2", ""), ("sdxl", CONV)]),
    indirect=["model"],
)
def test_diffusers_changes_as_ours_does(options: str, model: Compared, tmp_path: Path) -> None:
    file = model.train(tmp_path, *shlex.split(options))
    assert any("conv1" in name or "in_layers" in name for name in load_file(file)) == bool(options)
    plain, their_plain = ours(model, None), theirs(model, None)
    changed, their_changed = ours(model, file), theirs(model, file)
    for name in ("noise", "words", "pooled"):
        before, after = getattr(plain, name), getattr(changed, name)
        their_before, their_after = getattr(their_plain, name), getattr(their_changed, name)
        if before is None:
            assert their_before is None
            continue
        found = relative(after, their_after), relative(after - before, their_after - their_before)
        print(f"{model.kind} {name}: {relative(after, before):.2f} changed, difference {max(found):.1e}")
        assert relative(before, their_before) < 1e-4
        assert relative(after, before) > 0.02  # a change worth comparing
        assert max(found) < LIMIT


@pytest.mark.parametrize("model", others_slow(FAMILIES, ["sdxl"]), indirect=True)
def test_layers_that_an_alpha_of_0_switches_off_act_as_if_they_were_not_there(
    model: Compared, tmp_path: Path
) -> None:
    """Switch off the UNet's attention to itself and some layers of the text encoders, then everything.

    diffusers 0.42 scales all attention layers of a UNet by the most frequent alpha: what is off in part is
    compared with a file that lacks it.
    """
    files = {name: tmp_path / f"{name}.safetensors" for name in ("off", "without", "dark")}
    network = learned(model.family())
    tensors = network.state_dict()
    names = [layer.name for layer in network.layers if "attn1" in layer.name or "q_proj" in layer.name]
    dark = {key: torch.tensor(0.0) for key in tensors if key.endswith(".alpha")}
    save_file(tensors | {f"{name}.alpha": torch.tensor(0.0) for name in names}, files["off"])
    save_file({k: t for k, t in tensors.items() if k.partition(".")[0] not in names}, files["without"])
    save_file(tensors | dark, files["dark"])
    off, without = ours(model, files["off"]), theirs(model, files["without"])
    plain = ours(model, None)
    for found, expected in (
        (off, without),
        (ours(model, files["dark"]), plain),
        (theirs(model, files["dark"]), plain),
    ):
        assert relative(found.noise, expected.noise) < LIMIT
        assert relative(found.words, expected.words) < LIMIT
    assert relative(off.noise, plain.noise) > 0.02


def learned(family: Family) -> AdapterNetwork:
    """Return a LoRA of every layer with numbers everywhere."""
    parts = (*family.text_outputs, DENOISER)
    models = {part: family.load(part, torch.float32, torch.device("meta")) for part in parts}
    targets = [target for part in parts for target in family.adapter_targets(part, models[part])]
    network = AdapterNetwork(Lora(target, 2, 1.0) for target in targets if target.is_default)
    torch.manual_seed(5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network
