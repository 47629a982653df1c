"""`lycoris.kohya` trains on our models: what it adapts, and that its files are understood everywhere."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.adapters import legacy
from sfumato.adapters.foreign import ForeignNetwork
from sfumato.adapters.loading import network_from_file
from sfumato.adapters.network import AdapterNetwork
from sfumato.config.network import NetworkConfig
from sfumato.config.run import Run
from sfumato.errors import UserError
from sfumato.models import text_encoders
from sfumato.models.family import DENOISER, Family, family_for
from sfumato.models.flux.network import Flux
from tests.golden.flux_model import SHAPE
from tests.golden.unet_models import SD, SDXL

RECORDED = {recorded.family: recorded for recorded in (SD, SDXL)}
COUNTS = {
    "sd": {"unet": 278, "te": 12},
    "sdxl": {"unet": 788, "te1": 12, "te2": 12},
    "flux": {"unet": 29, "te1": 12},
}
"""For U-Nets as many layers as a LoRA with conv_dim adapts."""


def family_of(name: str) -> Family:
    return family_for(Run("", name, ()))


@pytest.fixture(scope="module")
def models() -> dict[str, dict[str, nn.Module]]:
    made = {name: recorded.models() for name, recorded in RECORDED.items()}
    with torch.device("meta"):
        flux = Flux(SHAPE)
    clip = {
        "embeddings.token_embedding.weight": (64, 32),
        "embeddings.position_embedding.weight": (77, 32),
        "encoder.layers.0.mlp.fc1.weight": (64, 32),
        "encoder.layers.1.mlp.fc1.weight": (64, 32),
    }
    made["flux"] = {"clip_l": text_encoders.build_clip(clip, "quick_gelu", 4), DENOISER: flux}
    return made


def build(family: str, models: dict[str, nn.Module], *network_args: str, **options: Any) -> ForeignNetwork:
    config = NetworkConfig(
        network_module="lycoris.kohya",
        network_dim=2,
        network_alpha=1.0,
        network_args=network_args,
        **options,
    )
    made = legacy.resolve(Run("", family, [config])).build(family_of(family), models)
    assert isinstance(made, ForeignNetwork)
    return made


def ours_from(path: Path, family: str, models: dict[str, nn.Module]) -> AdapterNetwork:
    targets = [t for part, model in models.items() for t in family_of(family).adapter_targets(part, model)]
    return network_from_file(path, targets)


@pytest.mark.parametrize("algo", ["loha", "lokr"])
@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_its_files_carry_the_names_of_published_files_and_load_again(
    algo: str, family: str, models: dict[str, dict[str, nn.Module]], tmp_path: Path
) -> None:
    parts = models[family]
    made = build(family, parts, f"algo={algo}", "preset=full", "conv_dim=2", "conv_alpha=1")
    path = tmp_path / "x.safetensors"
    made.save(path, None, {"ss_network_module": "lycoris.kohya"})
    layers = {key.partition(".")[0] for key in load_file(path)}
    assert Counter(name.split("_")[1] for name in layers) == COUNTS[family]
    targets = {
        f"lora_{target.name}"
        for part, model in parts.items()
        for target in family_of(family).adapter_targets(part, model)
    }
    assert layers <= targets
    again = ours_from(path, family, parts)
    assert {layer.name for layer in again.layers} == layers
    assert again.state_dict().keys() == load_file(path).keys()


def test_training_goes_on_from_its_own_file_and_from_ours(
    models: dict[str, dict[str, nn.Module]], tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    made = build("sdxl", models["sdxl"], "algo=loha", "conv_dim=2", "conv_alpha=1")
    made.save(path, None, {})
    tensors = {key: torch.randn_like(value) for key, value in load_file(path).items()}
    save_file(tensors, path)
    again = build(
        "sdxl", models["sdxl"], "algo=loha", "conv_dim=2", "conv_alpha=1", network_weights=str(path)
    )
    copy = tmp_path / "copy.safetensors"
    again.save(copy, None, {})
    written = load_file(copy)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], tensors[key]) for key in tensors)
    as_file = build("sdxl", models["sdxl"], "algo=loha", network_weights=str(path), dim_from_weights=True)
    as_file.save(copy, None, {})
    assert load_file(copy).keys() == tensors.keys()


def test_it_changes_a_model_exactly_as_our_own_kind_does(tmp_path: Path) -> None:
    model = SD.denoiser()
    own_parts = {DENOISER: model}
    before = SD.predict(model)
    made = build("sd", own_parts, "algo=lokr", "conv_dim=2", "conv_alpha=1", network_train_unet_only=True)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.trainable.parameters():
            parameter.copy_(torch.randn_like(parameter) / 20)
    made.trainable.eval()
    with torch.no_grad():
        theirs = SD.predict(model)
    path = tmp_path / "x.safetensors"
    made.save(path, None, {})
    made.detach()
    ours = ours_from(path, "sd", own_parts).eval()
    ours.attach()
    with torch.no_grad():
        found = SD.predict(model)
    assert (theirs - before).abs().max() > 1e-2
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)


def test_its_complaints_are_one_line(models: dict[str, dict[str, nn.Module]]) -> None:
    preset = "preset=attn-mlp"
    made = build("sd", models["sd"], "algo=loha", preset)
    assert "lycoris.kohya.LycorisNetworkKohya trains" in made.describe()
    with pytest.raises(UserError, match=r"lycoris.kohya refuses --network_args: .*; change them"):
        build("sd", models["sd"], "algo=loha", "preset=no_such_preset.toml")
