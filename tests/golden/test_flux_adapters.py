"""FLUX.1 adapters have the layers, names, groups, outputs, gradients and merged weights of sd-scripts."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.layers.oft import Oft
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.models.components import text_encoders
from sfumato.models.components.dit.targets import t5_targets
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.families.flux.network import Flux
from sfumato.models.families.flux.packing import image_ids, pack
from sfumato.models.families.flux.targets import denoiser_targets
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget
from tests import tiny
from tests.golden.derived import (
    arrays,
    assert_recorded,
    cases,
    error,
    inputs,
    quantities,
    rule,
    settings,
    weight,
)
from tests.golden.flux_model import SHAPE
from tests.golden.group_sizes import recorded_size

CASES = cases("e_net_flux")
GROUPS = [case for case in cases("g_blocks") if case.get("family") == "flux"]
NUMBERS = arrays("e_net_flux")
PREFIX, STD = settings("e_net_flux").get("key_prefix", ""), settings("e_net_flux")["lora_weight_std"]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])


class ToyFlux:
    """As much of the family as building an adapter needs."""

    text_outputs: Mapping[str, tuple[str, ...]] = {
        "clip_l": ("l_pooled",),
        "t5xxl": ("t5_out", "t5_attn_mask"),
    }

    def adapter_targets(self, part: str, model: Any) -> Iterator[AdapterTarget]:
        if part == DENOISER:
            return denoiser_targets(model)
        return clip.targets(model, part, "te1") if part == "clip_l" else t5_targets(model, part, "te3")


def _models(width: int, inner: int) -> dict[str, nn.Module]:
    with torch.device("meta"):
        flux = Flux(SHAPE)
    clip = {
        "embeddings.token_embedding.weight": (64, width),
        "embeddings.position_embedding.weight": (77, width),
        "encoder.layers.0.mlp.fc1.weight": (inner, width),
        "encoder.layers.1.mlp.fc1.weight": (inner, width),
    }
    return {
        DENOISER: flux,
        "clip_l": text_encoders.build_clip(clip, "quick_gelu", 4),
        "t5xxl": text_encoders.build_t5(dict(tiny.t5(width=32, heads=4, layers=2))),
    }


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return _models(48, 192)


@pytest.fixture(scope="module")
def models_of_groups() -> dict[str, nn.Module]:
    """Return models of the sizes with which groups were recorded."""
    return _models(32, 64)


def build(case: dict[str, Any], models: dict[str, nn.Module]) -> AdapterNetwork:
    config = NetworkConfig(
        network_module=case.get("module", "networks.lora_flux"),
        network_dim=case["dim"],
        network_alpha=case["alpha"],
        network_args=tuple(f"{key}={value}" for key, value in case["kwargs"].items()),
    )
    plan = network_modules.resolve(Run("flux_train_network", "flux", [config]))
    network = plan.build(ToyFlux(), models)  # type: ignore[arg-type]
    assert isinstance(network, AdapterNetwork)
    return network


@pytest.fixture(scope="module")
def flux() -> Flux:
    model = Flux(SHAPE).requires_grad_(False).eval()
    std = settings("e_net_flux")["model_weight_std"]
    model.load_state_dict({k: weight(PREFIX + k, v.shape, std) for k, v in model.state_dict().items()})
    assert error(predict(model), NUMBERS["base/out"]) < 1e-5
    return model


def predict(model: Flux) -> Tensor:
    """Run the model on the recorded inputs."""
    latents = inputs("enet.fx.latents", (2, SHAPE.in_channels // 4, 6, 8))
    text = inputs("enet.fx.txt", (2, 9, SHAPE.text_width))
    pooled = inputs("enet.fx.vec", (2, SHAPE.pooled_width))
    places = image_ids(2, 6, 8, latents.device)
    timesteps, guidance = torch.tensor([0.2, 0.9]), torch.tensor([3.5, 1.0])
    return model(pack(latents), places, text, torch.zeros(2, 9, 3), timesteps, pooled, guidance)


def trained(case: dict[str, Any], models: Mapping[str, nn.Module]) -> AdapterNetwork:
    """Return the recorded adapter of the denoiser with its derived numbers."""
    network = build(case, dict(models))
    state, std = network.state_dict(), 0.05 if "oft" in case["module"] else STD
    learned = {k: rule(PREFIX + k, v.shape) * std for k, v in state.items() if not k.endswith(".alpha")}
    network.load_state_dict(state | learned)
    own = [layer for layer in network.layers if layer.target.part == DENOISER]
    return AdapterNetwork(own).eval()


def test_every_recorded_case_is_here() -> None:
    assert {case["id"] for case in CASES} == {name.split("/")[0] for name in NUMBERS} - {"base"}


@each_case
def test_layers_ranks_and_keys_equal(case: dict[str, Any], models: dict[str, nn.Module]) -> None:
    network = build(case, models)
    is_split = "split_qkv" in case["kwargs"]
    found = []
    for layer in network.layers:
        if isinstance(layer, Oft):
            found.append([layer.name, layer.num_blocks, layer.alpha.item()])
            continue
        assert isinstance(layer, Lora)
        parts = max(1, len(layer.target.splits)) if is_split else 1
        found.append([layer.name, layer.rank // parts, layer.alpha.item() / parts])
    assert found == case["modules"]
    state = network.state_dict()
    counts = [sum(layer.target.part == DENOISER for layer in network.layers), len(state)]
    assert counts == [case["n_unet"], case["n_keys"]]
    assert len(network.layers) == case["n_unet"] + case["n_te"]
    lines = sorted(f"{key}|{tuple(tensor.shape)}" for key, tensor in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == case["state_dict_hash"]


@each_case
def test_outputs_equal_at_both_strengths(
    case: dict[str, Any], models: dict[str, nn.Module], flux: Flux
) -> None:
    network = trained(case, models | {DENOISER: flux})
    network.attach()
    for strength in (0.5, 1.0):
        network.set_strength(strength)
        with torch.no_grad():
            assert_recorded(predict(flux), NUMBERS, f"{case['id']}/out_m{strength}", 2e-5)
    network.detach()


@each_case
def test_merged_outputs_equal(case: dict[str, Any], models: dict[str, nn.Module], flux: Flux) -> None:
    recorded = "out" if "merge_error" in case else "merged_out"  # theirs fails to merge some: live is right
    for strength in (0.5, 1.0):
        model = copy.deepcopy(flux)
        network = trained(case, models | {DENOISER: model})
        _as_they_reload(case, network)
        network.merge(strength)
        with torch.no_grad():
            assert_recorded(predict(model), NUMBERS, f"{case['id']}/{recorded}_m{strength}", 2e-5)


def _as_they_reload(case: dict[str, Any], network: AdapterNetwork) -> None:
    """Give split layers the alpha of sd-scripts' files: not grown with the rank, so that they act weaker."""
    if "split_qkv" in case["kwargs"]:
        state = network.state_dict()
        network.load_state_dict(
            state | {k: torch.tensor(case["alpha"]) for k in state if k.endswith("alpha")}
        )


@each_case
def test_loss_and_gradients_equal(case: dict[str, Any], models: dict[str, nn.Module], flux: Flux) -> None:
    network = trained(case, models | {DENOISER: flux})
    network.attach()
    loss = predict(flux).pow(2).mean()
    loss.backward()
    network.detach()
    assert loss.item() == pytest.approx(case["loss"], rel=2e-5)
    for name in case["grads"]:
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        assert_recorded(gradient, NUMBERS, f"{case['id']}/grad/{name}", 5e-4)


@pytest.mark.parametrize(
    "case", [case for case in CASES if "split_qkv" in case["kwargs"]], ids=lambda c: c["id"]
)
def test_split_weights_are_stored_equal(case: dict[str, Any], models: dict[str, nn.Module]) -> None:
    network = build(case, models)
    given = {key: rule(PREFIX + key, value.shape) * STD for key, value in network.state_dict().items()}
    network.load_state_dict(given)
    names = quantities(NUMBERS, f"{case['id']}/saved")
    assert names
    for name in names:
        assert_recorded(network.state_dict()[name], NUMBERS, f"{case['id']}/saved/{name}", 1e-6)


@pytest.mark.parametrize("case", GROUPS, ids=lambda case: case["id"])
def test_parameter_groups_equal(case: dict[str, Any], models_of_groups: dict[str, nn.Module]) -> None:
    network = build(case, models_of_groups)
    rates = case["text_encoder_lr"]
    rates = [rates] if isinstance(rates, int | float) else rates
    groups = network.parameter_groups(case["default_lr"], case["unet_lr"], rates)
    found = [(group.name, group.learning_rate, *recorded_size(network, group.parameters)) for group in groups]
    expected = [(g["description"], g["lr"], g["n_params"], g["numel"]) for g in case["groups"]]
    assert found == expected
