"""U-Net adapters have the layers, ranks, outputs, gradients and merged weights that sd-scripts gives them."""

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.layers.dylora import NestedRanks
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.layers.oft import Oft
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.models.components.text_encoders import clip_tensors
from sfumato.models.interface.family import DENOISER
from sfumato.models.registry.families import family_for
from tests.golden.derived import arrays, assert_recorded, cases, error, quantities, rule, settings, weight
from tests.golden.unet_models import SD, SDXL, Recorded

pytestmark = pytest.mark.whole_model

CASES = [
    pytest.param(recorded, case, id=f"{recorded.family}-{case['id']}")
    for recorded in (SD, SDXL)
    for case in cases(recorded.fixture)
]
NUMBERS = {recorded.fixture: arrays(recorded.fixture) for recorded in (SD, SDXL)}
LIMITED = [case for case in CASES if "max_norm_key" in case.values[1]]  # type: ignore[attr-defined, operator]
OUTPUTS = [case for case in CASES if f"{case.values[1]['id']}/out_m1.0" in NUMBERS[case.values[0].fixture]]  # type: ignore[attr-defined, index]
TRAINED = [case for case in OUTPUTS if case.values[1].get("grads")]  # type: ignore[attr-defined]
NESTED = "networks.dylora"
MERGED = [case for case in TRAINED if case.values[1]["module"] != NESTED]  # type: ignore[attr-defined]
ENCODED = [case for case in TRAINED if case.values[1]["n_te"]]  # type: ignore[attr-defined]
NOT_MERGED_BY_THEM = {"oft_conv": ("down_blocks.0.resnets.0.conv1.weight",)}
"""Weights that sd-scripts overlooks when it merges; what was recorded of the whole model lacks them too."""


@dataclass(repr=False)
class Adapted:
    """The models with their numbers and each case's adapters on them, made once.

    Attributes:
        models: the two text encoders of SDXL have no numbers, for none of theirs were recorded.
        made: the adapters of a case, and what they have learned.
    """

    models: dict[str, dict[str, nn.Module]]
    made: dict[str, tuple[AdapterNetwork, dict[str, Tensor]]] = field(default_factory=dict)

    def denoiser(self, recorded: Recorded) -> nn.Module:
        return self.models[recorded.fixture][DENOISER]

    def network(self, recorded: Recorded, case: dict[str, Any]) -> AdapterNetwork:
        return self._made(recorded, case)[0]

    def trained(self, recorded: Recorded, case: dict[str, Any], part: str | None = None) -> AdapterNetwork:
        """Return the recorded adapter with its derived numbers, or its layers of one part."""
        whole, learned = self._made(recorded, case)
        network = AdapterNetwork([layer for layer in whole.layers if part in (None, layer.target.part)])
        for name, tensor in network.state_dict(keep_vars=True).items():
            if name in learned:
                tensor.data.copy_(learned[name])
                tensor.grad = None
        network.set_strength(1.0)
        return network.train(case["module"] == NESTED)

    def _made(self, recorded: Recorded, case: dict[str, Any]) -> tuple[AdapterNetwork, dict[str, Tensor]]:
        key = f"{recorded.fixture}/{case['id']}"
        if key not in self.made:
            network = build(recorded, case, self.models[recorded.fixture])
            std = 0.05 if "oft" in case["module"] else settings(recorded.fixture)["lora_weight_std"]
            shapes = {k: v.shape for k, v in network.state_dict().items() if not k.endswith(".alpha")}
            learned = {k: rule(recorded.key_prefix + k, shape) * std for k, shape in shapes.items()}
            self.made[key] = network, learned
        return self.made[key]


@pytest.fixture(scope="module")
def adapted() -> Adapted:
    return Adapted({recorded.fixture: with_numbers(recorded) for recorded in (SD, SDXL)})


@torch.no_grad()
def with_numbers(recorded: Recorded) -> dict[str, nn.Module]:
    """Return a U-Net with its derived numbers, and a single text encoder with its own; two stay without."""
    models, sizes = recorded.models(), settings(recorded.fixture)["model"]
    for part in recorded.texts if len(recorded.texts) == 1 else ():
        encoder = models[part].to_empty(device="cpu").requires_grad_(False).eval()
        for name, tensor in clip_tensors(encoder.state_dict()).items():
            key = f"{recorded.key_prefix}text_model.{name}"
            tensor.copy_(weight(key, tensor.shape, sizes["text_encoder"]["weight_std"]))
        for name, buffer in encoder.named_buffers():
            assert name.endswith("position_ids")
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(1, -1))
    return {**models, DENOISER: recorded.denoiser()}


def build(recorded: Recorded, case: dict[str, Any], models: dict[str, nn.Module]) -> AdapterNetwork:
    config = NetworkConfig(
        network_module=case["module"],
        network_dim=case["dim"],
        network_alpha=case["alpha"],
        network_args=tuple(f"{key}={value}" for key, value in case["kwargs"].items()),
    )
    plan = network_modules.resolve(Run("", recorded.family, [config]))
    network = plan.build(family_for(Run("", recorded.family, ())), models)
    assert isinstance(network, AdapterNetwork)
    for layer in network.layers:
        if isinstance(layer, Lora) and layer.nested:
            layer.nested = NestedRanks(layer.nested.unit, lambda count: random.randint(0, count - 1))
    return network


def size(layer: Any) -> int:
    return layer.num_blocks if isinstance(layer, Oft) else layer.rank


def strengths(case: dict[str, Any]) -> tuple[tuple[float, str], ...]:
    """Return strengths and the recorded ones: the recording had one strength for layers of nested ranks."""
    return (1.0, "1.0"), (1.0 if case["module"] == NESTED else 0.5, "0.5")


@pytest.mark.parametrize(("recorded", "case"), CASES)
def test_layers_ranks_and_keys_equal(recorded: Recorded, case: dict[str, Any], adapted: Adapted) -> None:
    network = adapted.network(recorded, case)
    found: list[Any] = [[layer.name, size(layer), layer.alpha.item()] for layer in network.layers]  # type: ignore[attr-defined]
    if case["modules"]:
        assert found == case["modules"]
    counts = [sum(layer.target.part == DENOISER for layer in network.layers), len(network.layers)]
    assert counts == [case["n_unet"], case["n_unet"] + case["n_te"]]
    state = network.state_dict()
    lines = sorted(f"{key}|{tuple(tensor.shape)}" for key, tensor in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == case["state_dict_hash"]
    assert len(state) == case["n_keys"]


@pytest.mark.parametrize(("recorded", "case"), OUTPUTS)
def test_outputs_equal_at_both_strengths(
    recorded: Recorded,
    case: dict[str, Any],
    adapted: Adapted,
) -> None:
    numbers, model = NUMBERS[recorded.fixture], adapted.denoiser(recorded)
    network = adapted.trained(recorded, case, DENOISER)
    network.attach()
    for strength, name in strengths(case):
        network.set_strength(strength)
        random.seed(case.get("python_seed_forward"))
        with torch.no_grad():
            assert error(recorded.predict(model), numbers[f"{case['id']}/out_m{name}"]) < 2e-5
    network.detach()


@torch.no_grad()
@pytest.mark.parametrize(("recorded", "case"), MERGED)
def test_merged_models_and_weights_equal(
    recorded: Recorded,
    case: dict[str, Any],
    adapted: Adapted,
) -> None:
    numbers, model = NUMBERS[recorded.fixture], adapted.denoiser(recorded)
    overlooked = NOT_MERGED_BY_THEM.get(case["id"], ())
    output = "out" if overlooked else "merged_out"
    network = adapted.trained(recorded, case, DENOISER)
    targets = [layer.target.module.get_parameter("weight") for layer in network.layers]
    plain = [target.clone() for target in targets]
    for strength in (0.5, 1.0):
        for target, before in zip(targets, plain, strict=True):
            target.copy_(before)
        network.merge(strength)
        assert error(recorded.predict(model), numbers[f"{case['id']}/{output}_m{strength}"]) < 2e-5
    stem = f"{case['id']}/merged/"
    names = quantities(numbers, stem.rstrip("/"))
    assert names
    for name in set(names).difference(overlooked):
        assert_recorded(model.get_parameter(name), numbers, stem + name, 2e-5)
    for target, before in zip(targets, plain, strict=True):
        target.copy_(before)


@pytest.mark.parametrize(("recorded", "case"), TRAINED)
def test_loss_and_gradients_equal(
    recorded: Recorded,
    case: dict[str, Any],
    adapted: Adapted,
) -> None:
    numbers, model = NUMBERS[recorded.fixture], adapted.denoiser(recorded)
    network = adapted.trained(recorded, case, DENOISER)
    state = network.state_dict(keep_vars=True)
    for name in case["grads"]:
        if name in state:  # what LoRA-FA freezes was recorded as well
            state[name].requires_grad_()
    network.attach()
    random.seed(case.get("python_seed_grad"))
    loss = recorded.predict(model).pow(2).mean()
    loss.backward()
    network.detach()
    assert loss.item() == pytest.approx(case["loss"], rel=2e-5)
    for name in case["grads"]:
        assert_recorded(gradient(state, name), numbers, f"{case['id']}/grad/{name}", 5e-4)


def gradient(state: dict[str, Tensor], name: str) -> Tensor:
    """Return a gradient under its recorded name: the ranks of a nested LoRA were recorded one by one."""
    layer, part, *place = name.rsplit(".", 2)
    if part in ("lora_A", "lora_B"):
        whole, dim = ("lora_down", 0) if part == "lora_A" else ("lora_up", 1)
        found = state[f"{layer}.{whole}.weight"].grad
        assert found is not None
        return found.narrow(dim, int(place[0]), 1)
    found = state[name].grad
    assert found is not None
    return found


@pytest.mark.parametrize(("recorded", "case"), ENCODED)
def test_text_encoder_outputs_equal(recorded: Recorded, case: dict[str, Any], adapted: Adapted) -> None:
    numbers, model = NUMBERS[recorded.fixture], settings(recorded.fixture)["model"]
    (part,) = recorded.texts
    encoder = adapted.models[recorded.fixture][part]
    network = adapted.trained(recorded, case, part)
    network.attach()
    for strength, name in strengths(case):
        network.set_strength(strength)
        random.seed(case.get("python_seed_te"))
        with torch.no_grad():
            states = encoder(torch.tensor(model["te_input_ids"])).last_hidden_state
        assert_recorded(states, numbers, f"{case['id']}/te_m{name}", 2e-5)
    network.detach()


@pytest.mark.parametrize(("recorded", "case"), LIMITED)
def test_norms_are_limited_as_recorded(
    recorded: Recorded,
    case: dict[str, Any],
    adapted: Adapted,
) -> None:
    numbers = NUMBERS[recorded.fixture]
    network = adapted.trained(recorded, case)
    (name,) = (name for name in case if name.startswith("max_norm_") and name != "max_norm_key")
    figures = network.limit_norms(float(name.removeprefix("max_norm_")))
    assert [figure.item() for figure in figures.values()] == pytest.approx(case[name], rel=1e-6)
    key = case["max_norm_key"]
    assert_recorded(network.state_dict()[key], numbers, f"{case['id']}/maxnorm/{key}", 1e-6)
