"""FLUX.1 LoRAs have the layers, ranks, names, groups and split weights that sd-scripts gives them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sfumato.adapters import legacy
from sfumato.adapters.lora import Lora
from sfumato.adapters.network import AdapterNetwork
from sfumato.config.network import NetworkConfig
from sfumato.config.run import Run
from sfumato.models import text_encoders
from sfumato.models.family import DENOISER, AdapterTarget
from sfumato.models.flux.network import Flux, FluxShape
from sfumato.models.flux.targets import clip_targets, denoiser_targets, t5_targets
from tests import tiny
from tests.golden.derived import cases, rule, settings

CASES = [case for case in cases("e_net_flux") if case["module"] == "networks.lora_flux"]
GROUPS = cases("g_blocks_flux")
NUMBERS = load_file(Path(__file__).parent / "e_net_flux.safetensors")
STD = settings("e_net_flux")["lora_weight_std"]


class ToyFlux:
    """As much of the family as building an adapter needs."""

    text_outputs: Mapping[str, tuple[str, ...]] = {
        "clip_l": ("l_pooled",),
        "t5xxl": ("t5_out", "t5_attn_mask"),
    }

    def adapter_targets(self, part: str, model: Any) -> Iterator[AdapterTarget]:
        if part == DENOISER:
            return denoiser_targets(model)
        return clip_targets(model, part) if part == "clip_l" else t5_targets(model, part)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    shape = FluxShape(
        hidden_size=96,
        num_heads=4,
        depth=2,
        depth_single=3,
        in_channels=64,
        text_width=48,
        pooled_width=32,
        mlp_hidden=384,
        axes_dim=(4, 10, 10),
        guidance=True,
    )
    with torch.device("meta"):
        flux = Flux(shape)
    bare = {
        "embeddings.token_embedding.weight": (64, 32),
        "embeddings.position_embedding.weight": (77, 32),
        "encoder.layers.0.mlp.fc1.weight": (64, 32),
        "encoder.layers.1.mlp.fc1.weight": (64, 32),
    }
    return {
        DENOISER: flux,
        "clip_l": text_encoders.build_clip(bare, "quick_gelu", 4),
        "t5xxl": text_encoders.build_t5(dict(tiny.t5(width=32, heads=4, layers=2))),
    }


def build(case: dict[str, Any], models: dict[str, nn.Module]) -> AdapterNetwork:
    config = NetworkConfig(
        network_module="networks.lora_flux",
        network_dim=case["dim"],
        network_alpha=case["alpha"],
        network_args=tuple(f"{key}={value}" for key, value in case["kwargs"].items()),
    )
    plan = legacy.resolve(Run("flux_train_network", "flux", [config]))
    network = plan.build(ToyFlux(), models)  # type: ignore[arg-type]
    assert isinstance(network, AdapterNetwork)
    return network


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_layers_ranks_and_keys_equal(case: dict[str, Any], models: dict[str, nn.Module]) -> None:
    network = build(case, models)
    is_split = "split_qkv" in case["kwargs"]
    found = []
    for layer in network.layers:
        assert isinstance(layer, Lora)
        parts = max(1, len(layer.target.splits)) if is_split else 1
        found.append([layer.name, layer.rank // parts, layer.alpha.item() / parts])
    assert found == case["modules"]
    counts = [sum(layer.target.part == DENOISER for layer in network.layers), len(network.state_dict())]
    assert counts == [case["n_unet"], case["n_keys"]]
    assert len(network.layers) == case["n_unet"] + case["n_te"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if "split_qkv" in case["kwargs"]], ids=lambda c: c["id"]
)
def test_split_weights_are_stored_equal(case: dict[str, Any], models: dict[str, nn.Module]) -> None:
    network = build(case, models)
    given = {key: rule(key, tuple(value.shape)) * STD for key, value in network.state_dict().items()}
    network.load_state_dict(given)
    for layer in ("double_blocks_0_img_attn_qkv", "single_blocks_0_linear1"):
        key = f"lora_unet_{layer}.lora_up.weight"
        stored, recorded = network.state_dict()[key].flatten(), f"{case['id']}/saved/{key}"
        first = NUMBERS[f"{recorded}/first"]
        step = max(1, stored.numel() // len(first))
        torch.testing.assert_close(stored[: len(first)], first)
        torch.testing.assert_close(stored[::step][: len(first)], NUMBERS[f"{recorded}/strided"])
        assert stored.double().norm().item() == pytest.approx(
            NUMBERS[f"{recorded}/stats"][3].item(), rel=1e-6
        )


@pytest.mark.parametrize("case", GROUPS, ids=lambda case: case["id"])
def test_parameter_groups_equal(case: dict[str, Any], models: dict[str, nn.Module]) -> None:
    network = build(case, models)
    rates = case["text_encoder_lr"]
    rates = [rates] if isinstance(rates, int | float) else rates
    groups = network.parameter_groups(case["default_lr"], case["unet_lr"], rates)
    found = [(group.name, group.learning_rate, *_size(network, group.parameters)) for group in groups]
    expected = [(g["description"], g["lr"], g["n_params"], g["numel"]) for g in case["groups"]]
    assert found == expected


def _size(network: AdapterNetwork, parameters: list[nn.Parameter]) -> tuple[int, int]:
    """Count as was recorded: before the adapter was applied, while adapted layers were parts of it."""
    ids = {id(parameter) for parameter in parameters}
    own = [
        parameter
        for layer in network.layers
        if isinstance(layer, Lora) and id(layer.lora_down.weight) in ids
        for parameter in layer.target.module.parameters()
    ]
    everything = [*parameters, *own]
    return len(everything), sum(parameter.numel() for parameter in everything)
