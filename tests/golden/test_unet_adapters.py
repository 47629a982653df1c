"""U-Net LoRAs have the layers, ranks, outputs, gradients and merged weights that sd-scripts gives them."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.adapters import legacy
from sfumato.adapters.lora import Lora
from sfumato.adapters.network import AdapterNetwork
from sfumato.config.network import NetworkConfig
from sfumato.config.run import Run
from sfumato.models.family import DENOISER, family_for
from sfumato.models.text_encoders import clip_tensors
from tests.golden.derived import cases, error, rule, settings, weight
from tests.golden.unet_models import SD, SDXL, Recorded

CASES = [
    pytest.param(recorded, case, id=f"{recorded.family}-{case['id']}")
    for recorded in (SD, SDXL)
    for case in cases(recorded.fixture)
    if case["module"] == "networks.lora"
]
NUMBERS = {r.fixture: load_file(Path(__file__).parent / f"{r.fixture}.safetensors") for r in (SD, SDXL)}
OUTPUTS = [case for case in CASES if f"{case.values[1]['id']}/out_m1.0" in NUMBERS[case.values[0].fixture]]  # type: ignore[attr-defined, index]
TRAINED = [case for case in OUTPUTS if case.values[1].get("grads")]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def denoisers() -> dict[str, nn.Module]:
    return {recorded.fixture: recorded.denoiser() for recorded in (SD, SDXL)}


@pytest.fixture(scope="module")
def parts() -> dict[str, dict[str, nn.Module]]:
    return {recorded.fixture: recorded.models() for recorded in (SD, SDXL)}


def build(recorded: Recorded, case: dict[str, Any], models: dict[str, nn.Module]) -> AdapterNetwork:
    config = NetworkConfig(
        network_module=case["module"],
        network_dim=case["dim"],
        network_alpha=case["alpha"],
        network_args=tuple(f"{key}={value}" for key, value in case["kwargs"].items()),
    )
    plan = legacy.resolve(Run("", recorded.family, [config]))
    network = plan.build(family_for(Run("", recorded.family, ())), models)
    assert isinstance(network, AdapterNetwork)
    return network


def trained(recorded: Recorded, case: dict[str, Any], models: dict[str, nn.Module]) -> AdapterNetwork:
    network = build(recorded, case, models)
    std = settings(recorded.fixture)["lora_weight_std"]
    state = network.state_dict()
    learned = {k: rule(k, tuple(v.shape)) * std for k, v in state.items() if not k.endswith(".alpha")}
    network.load_state_dict(state | learned)
    return network.eval()


def assert_stored(actual: Tensor, name: str, numbers: dict[str, Tensor], tolerance: float) -> None:
    flat, first = actual.detach().flatten(), numbers[f"{name}/first"]
    step = max(1, flat.numel() // len(first))
    assert error(flat[: len(first)], first) < tolerance
    assert error(flat[::step][: len(first)], numbers[f"{name}/strided"]) < tolerance
    assert flat.double().norm().item() == pytest.approx(numbers[f"{name}/stats"][3].item(), rel=tolerance)


@pytest.mark.parametrize(("recorded", "case"), CASES)
def test_layers_ranks_and_keys_equal(
    recorded: Recorded, case: dict[str, Any], parts: dict[str, dict[str, nn.Module]]
) -> None:
    network = build(recorded, case, parts[recorded.fixture])
    found = [
        [layer.name, layer.rank, layer.alpha.item()] for layer in network.layers if isinstance(layer, Lora)
    ]
    if case["modules"]:
        assert sorted(found) == sorted(case["modules"])
    counts = [sum(layer.target.part == DENOISER for layer in network.layers), len(network.layers)]
    assert counts == [case["n_unet"], case["n_unet"] + case["n_te"]]
    state = network.state_dict()
    lines = sorted(f"{key}|{tuple(tensor.shape)}" for key, tensor in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == case["state_dict_hash"]
    assert len(state) == case["n_keys"]


@pytest.mark.parametrize(("recorded", "case"), OUTPUTS)
def test_outputs_equal_at_both_strengths(
    recorded: Recorded, case: dict[str, Any], denoisers: dict[str, nn.Module]
) -> None:
    numbers, model = NUMBERS[recorded.fixture], denoisers[recorded.fixture]
    network = trained(recorded, case, {**recorded.models(), DENOISER: model})
    network.attach()
    for strength in (0.5, 1.0):
        network.set_strength(strength)
        with torch.no_grad():
            assert error(recorded.predict(model), numbers[f"{case['id']}/out_m{strength}"]) < 2e-5
    network.detach()


@pytest.mark.parametrize(("recorded", "case"), TRAINED)
def test_merged_models_and_weights_equal(
    recorded: Recorded, case: dict[str, Any], denoisers: dict[str, nn.Module]
) -> None:
    numbers = NUMBERS[recorded.fixture]
    for strength in (0.5, 1.0):
        model = copy.deepcopy(denoisers[recorded.fixture])
        network = trained(recorded, case, {**recorded.models(), DENOISER: model})
        AdapterNetwork([layer for layer in network.layers if layer.target.part == DENOISER]).merge(strength)
        with torch.no_grad():
            assert error(recorded.predict(model), numbers[f"{case['id']}/merged_out_m{strength}"]) < 2e-5
    stem = f"{case['id']}/merged/"
    names = {key.split("/")[2] for key in numbers if key.startswith(stem)}
    assert len(names) == 3
    for name in names:
        assert_stored(model.get_parameter(name), stem + name, numbers, 2e-5)


@pytest.mark.parametrize(("recorded", "case"), TRAINED)
def test_loss_and_gradients_equal(
    recorded: Recorded, case: dict[str, Any], denoisers: dict[str, nn.Module]
) -> None:
    numbers, model = NUMBERS[recorded.fixture], denoisers[recorded.fixture]
    network = trained(recorded, case, {**recorded.models(), DENOISER: model})
    network.attach()
    loss = recorded.predict(model).pow(2).mean()
    loss.backward()
    network.detach()
    assert loss.item() == pytest.approx(case["loss"], rel=2e-5)
    for name in case["grads"]:
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        assert_stored(gradient, f"{case['id']}/grad/{name}", numbers, 5e-4)


@pytest.mark.parametrize(("recorded", "case"), TRAINED)
def test_text_encoder_outputs_equal(recorded: Recorded, case: dict[str, Any]) -> None:
    numbers, model = NUMBERS[recorded.fixture], settings(recorded.fixture)["model"]
    part = next(iter(recorded.texts))
    encoder = recorded.models()[part].to_empty(device="cpu").requires_grad_(False).eval()
    std = model["text_encoder"]["weight_std"]
    for name, tensor in clip_tensors(encoder).items():
        tensor.copy_(weight(f"text_model.{name}", tuple(tensor.shape), std))
    for name, buffer in encoder.named_buffers():
        assert name.endswith("position_ids")
        buffer.copy_(torch.arange(77).expand(1, -1))
    network = trained(recorded, case, {**recorded.models(), part: encoder})
    network.attach()
    for strength in (0.5, 1.0):
        network.set_strength(strength)
        with torch.no_grad():
            states = encoder(torch.tensor(model["te_input_ids"])).last_hidden_state
        assert_stored(states, f"{case['id']}/te_m{strength}", numbers, 2e-5)
