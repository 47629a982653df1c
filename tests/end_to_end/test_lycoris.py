"""`lycoris.kohya` trains on our models: what it adapts, and that its files are understood everywhere."""

import copy
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.plan import NetworkPlan
from sfumato.adapters.sd_scripts import network_modules, trial_inputs
from sfumato.adapters.sd_scripts.third_party import ForeignNetwork
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.components import text_encoders
from sfumato.models.families.flux.network import Flux
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.registry.families import family_for
from sfumato.nn import precision
from tests.adapters import lycoris_algorithms
from tests.golden.flux_model import SHAPE
from tests.golden.unet_models import SD, SDXL
from tests.runs import others_slow

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
    return {**made, "flux": flux_without_numbers()}


def flux_without_numbers() -> dict[str, nn.Module]:
    with torch.device("meta"):
        flux = Flux(SHAPE)
    clip = {
        "embeddings.token_embedding.weight": (64, 32),
        "embeddings.position_embedding.weight": (77, 32),
        "encoder.layers.0.mlp.fc1.weight": (64, 32),
        "encoder.layers.1.mlp.fc1.weight": (64, 32),
    }
    return {"clip_l": text_encoders.build_clip(clip, "quick_gelu", 4), DENOISER: flux}


def plan(family: str, *network_args: str, **options: Any) -> NetworkPlan:
    config = NetworkConfig(
        network_module="lycoris.kohya",
        network_args=network_args,
        **{"network_dim": 2, "network_alpha": 1.0, **options},
    )
    return network_modules.resolve(Run("", family, [config]))


def build(family: str, models: dict[str, nn.Module], *network_args: str, **options: Any) -> ForeignNetwork:
    made = plan(family, *network_args, **options).build(family_of(family), models)
    assert isinstance(made, ForeignNetwork)
    return made


def ours_from(path: Path, family: str, models: dict[str, nn.Module]) -> AdapterNetwork:
    targets = [t for part, model in models.items() for t in family_of(family).adapter_targets(part, model)]
    return network_from_file(path, targets)


@pytest.mark.parametrize(
    ("algo", "family"),
    others_slow(
        product(["loha", "lokr"], ["sd", "sdxl", "flux"]),
        [("loha", "sd"), ("lokr", "sdxl"), ("loha", "flux")],
    ),
)
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
    said = r"lycoris.kohya with --network_args algo=loha preset=no_such.* could not make its network: Assert"
    with pytest.raises(UserError, match=said):
        build("sd", models["sd"], "algo=loha", "preset=no_such_preset.toml")


QUICK = ["lora", "loha, decomposed", "lokr, tucker", "full"]
SLOW = [name for name in lycoris_algorithms.ALGORITHMS if name not in QUICK and "dropouts" not in name]


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return SD.denoiser()


@pytest.mark.parametrize("stored", [torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    "algorithm", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_every_kind_of_layer_is_changed_and_learns(
    algorithm: str, stored: torch.dtype, unet: nn.Module
) -> None:
    model = copy.deepcopy(unet)
    if stored is torch.float8_e4m3fn:
        precision.store(model.bfloat16(), stored)
    args = lycoris_algorithms.ALGORITHMS[algorithm].replace("block_size=1", "block_size=2").split()
    if algorithm == "tlora":
        args.append("preset=attn-mlp")  # it cannot work on larger kernels
    made = build("sd", {DENOISER: model}, *args, network_train_unet_only=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.trainable.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    network: Any = made.trainable
    layers = {trial_inputs.kind_of(one.org_module[0]): one for one in network.loras}
    assert len(layers) == (3 if algorithm == "tlora" else 5)
    for one in layers.values():
        assert_is_changed_and_learns(one, stored)


def assert_is_changed_and_learns(adapter: Any, stored: torch.dtype) -> None:
    layer = adapter.org_module[0]
    inputs = trial_inputs.input_for(layer, torch.device("cpu"))
    assert inputs is not None
    inputs = torch.randn_like(inputs)
    with torch.autocast("cpu", enabled=stored is not torch.float32):
        changed = layer(inputs)
        changed.float().square().sum().backward()
        assert all(parameter.grad is not None for parameter in adapter.parameters())
        assert all(parameter.grad.any() for parameter in adapter.parameters())
        adapter.multiplier = 0.0
        plain = layer(inputs)
    assert plain.dtype is changed.dtype
    assert (changed - plain).norm() > 1e-3 * plain.norm()


@pytest.mark.parametrize(
    ("family", "network_args", "message"),
    [
        ("flux", "algo=ia3 preset=ia3", "adapts no layer of this model; choose another preset"),
        (
            "flux",
            "algo=lora train_norm=True",
            r"failed in Flux.double_blocks.0.img_norm\d: AttributeError",
        ),
        pytest.param(
            *("sd", "algo=tlora", "cannot work on UNet2DConditionModel.down_blocks.*conv.*: RuntimeError"),
            marks=pytest.mark.slow,  # 290 decompositions without numbers
        ),
        ("sd", "algo=dylora", r"could not make its network: AssertionError: lora_dim must be a multiple"),
        ("sd", "algo=nothing", "could not make its network: KeyError: 'nothing'"),
    ],
)
def test_what_it_cannot_do_is_one_line_before_weights_are_there(
    family: str, network_args: str, message: str
) -> None:
    parts = {"sd": SD.models, "flux": flux_without_numbers}[family]()
    with pytest.raises(UserError, match=message):
        plan(family, *network_args.split()).rehearse(family_of(family), parts)


@pytest.mark.parametrize(
    "network_args",
    [
        "algo=full",
        *(pytest.param(f"algo={a}", marks=pytest.mark.slow) for a in ("lora dora_wd=True", "tlora")),
    ],
)
def test_networks_that_read_weights_are_rehearsed_without_them(network_args: str) -> None:
    parts = flux_without_numbers()
    rehearsed = plan("flux", *network_args.split()).rehearse(family_of("flux"), parts)
    assert rehearsed is not None
    assert sum(tensor.numel() for _, tensor in rehearsed.tensors()) > 1000


def test_a_file_of_another_rank_is_refused_before_weights_are_there(
    models: dict[str, dict[str, nn.Module]], tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    build("flux", models["flux"], "algo=lora").save(path, None, {})
    with pytest.raises(UserError, match=r"could not load .*x.safetensors: RuntimeError: .*size mismatch"):
        plan("flux", "algo=lora", network_dim=3, network_weights=str(path)).rehearse(
            family_of("flux"), flux_without_numbers()
        )


def test_another_alpha_and_what_is_left_out_is_said(
    models: dict[str, dict[str, nn.Module]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.safetensors"
    build("flux", models["flux"], "algo=lora", network_alpha=2.0).save(path, None, {})
    only = {"network_train_unet_only": True, "network_weights": str(path)}
    build("flux", {DENOISER: flux_without_numbers()[DENOISER]}, "algo=lora", **only)
    assert "x.safetensors has 36 tensors that the network knows nothing of (lora_te1_" in caplog.text
    assert "x.safetensors says 2 for lora_unet_" in caplog.text
    assert "which is 1 in this run: give --network_alpha as the file has it" in caplog.text


def test_a_preset_does_not_reach_the_next_network(tmp_path: Path) -> None:
    few = build("sd", SD.models(), "algo=lora", "preset=attn-mlp")
    path = tmp_path / "x.safetensors"
    few.save(path, None, {})
    build("sd", SD.models(), "algo=lora", "preset=unet-convblock-only")
    again = build("sd", SD.models(), network_weights=str(path), dim_from_weights=True)
    assert again.trainable.state_dict().keys() == few.trainable.state_dict().keys()
