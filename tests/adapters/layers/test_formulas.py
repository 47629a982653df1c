"""Kinds that other programs train: a file changes the parameters as the program that wrote it says."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lycoris.kohya import create_network
from lycoris.modules.norms import NormModule
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.adapters.layers.formulas import composition, decomposition
from sfumato.adapters.layers.formulas.formula_layer import FormulaLayer
from sfumato.adapters.layers.layer import AdapterLayer, attach
from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.weight_changes import Adapter, changed
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.families.flux.network import RMSNorm
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget
from tests.adapters import toy

CPU = torch.device("cpu")


class Transformer2DModel(nn.Module):
    """A name that LyCORIS looks for, with a layer of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.wide = nn.Linear(16, 32, bias=False)
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.groups = nn.GroupNorm(4, 16)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(Transformer2DModel()).requires_grad_(False)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def targets(of: nn.Module) -> list[AdapterTarget]:
    layers = [(path, layer) for path, layer in of.named_modules() if list(layer.parameters(recurse=False))]
    return [AdapterTarget(f"unet_{path}".replace(".", "_"), layer, DENOISER) for path, layer in layers]


ALGORITHMS = {
    "locon": {"use_tucker": "True"},
    "locon, decomposed": {"algo": "locon", "dora_wd": "True"},
    "locon, decomposed by inputs": {"algo": "locon", "dora_wd": "True", "wd_on_output": "False"},
    "locon, tucker, decomposed": {"algo": "locon", "use_tucker": "True", "dora_wd": "True"},
    "loha": {"use_tucker": "True"},
    "loha, decomposed": {"algo": "loha", "dora_wd": "True"},
    "lokr": {"use_tucker": "True", "factor": "2", "conv_dim": "1", "decompose_both": "True"},
    "lokr, decomposed": {"algo": "lokr", "factor": "4", "dora_wd": "True"},
    "glora": {},
    "ia3": {},
    "ia3, on inputs": {"algo": "ia3", "train_on_input": "True"},
    "diag-oft": {},
    "diag-oft, limited": {"algo": "diag-oft", "constraint": "0.01", "rescaled": "True"},
    "boft": {},
    "boft, limited": {"algo": "boft", "constraint": "0.01", "rescaled": "True"},
    "full": {"train_norm": "True"},
}


SCALED_TWICE = ("loha", "lokr")
"""What LyCORIS 4.1 scales twice where it merges: with an alpha that is the rank it does not matter."""


def trained(name: str, of: nn.Module) -> Any:
    """Return LyCORIS' network of a model, with numbers in all its tensors, as after training."""
    arguments = {"algo": name, "preset": "full", "conv_dim": "4"} | ALGORITHMS[name]
    rank = 16 if "boft" in name else 4
    alpha = 4.0 if name.startswith(SCALED_TWICE) else 3.0
    arguments["conv_alpha"] = arguments["conv_dim"] if name.startswith(SCALED_TWICE) else "3"
    network = cast(Any, create_network(1.0, rank, alpha, None, [], of, **arguments))
    torch.manual_seed(1)
    for module in network.unet_loras:
        for key, parameter in module.named_parameters():
            if key in ("dora_scale", "rescale"):
                parameter.data.mul_(1 + torch.rand_like(parameter) / 2)
            else:
                nn.init.normal_(parameter, std=0.2)
    return network


def merged_by_lycoris(module: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        weight, bias = module.get_merged_weight(1.0, None if isinstance(module, NormModule) else module.shape)
    return {"weight": weight} | ({} if bias is None else {"bias": bias})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_lycoris_trains_is_merged_as_it_merges_it_and_acts_live_alike(name: str, tmp_path: Path) -> None:
    base = model()
    theirs = copy.deepcopy(base)
    network, path = trained(name, theirs), tmp_path / "x.safetensors"
    assert len(network.unet_loras) >= 3
    expected = {module.lora_name: merged_by_lycoris(module) for module in network.unet_loras}
    network.apply_to([], theirs, False, True)
    network.save_weights(str(path), None, {})
    adapter = Adapter.read(path, lambda _: 1.0)
    by_name = {f"lora_{target.name}": target for target in targets(base)}
    for layer, parameters in expected.items():
        target = by_name[layer]
        for key, value in parameters.items():
            own = target.module.get_parameter(key)
            found = changed(own, target, [adapter], torch.float32, CPU, key)
            assert (found - value).norm() < 1e-6 * value.norm()
            assert (found - own).norm() > 1e-3 * own.norm()
    assert_live_equals_merged(path, targets(base))


def assert_live_equals_merged(path: Path, own: list[AdapterTarget], strength: float = 0.7) -> None:
    network = network_from_file(path, own).requires_grad_(False).eval()
    for layer in network.layers:
        module = layer.target.module
        shape = {nn.Conv2d: (2, 8, 5, 5), nn.GroupNorm: (2, 16, 3)}.get(type(module), (2, 3, 16))
        inputs = torch.randn(shape)  # type: ignore[arg-type]
        layer.strength = strength
        handle = attach(layer)
        live = module(inputs)
        handle.remove()
        before = {key: value.clone() for key, value in module.state_dict().items()}
        AdapterNetwork([layer]).merge(strength)
        torch.testing.assert_close(module(inputs), live, rtol=1e-4, atol=1e-4)
        module.load_state_dict(before)


def written(path: Path, tensors: dict[str, Tensor], layer: str = "unet_x") -> Path:
    save_file({f"lora_{layer}.{name}": value.contiguous() for name, value in tensors.items()}, path)
    return path


def change(path: Path, module: nn.Module, strength: float = 1.0, **options: Any) -> dict[str, Tensor]:
    """Return what merging a file adds to each parameter of a layer."""
    target = AdapterTarget("unet_x", module.requires_grad_(False), DENOISER, **options)
    (layer,) = network_from_file(path, [target]).layers
    return added_by(layer, strength)


def added_by(layer: AdapterLayer, strength: float = 1.0) -> dict[str, Tensor]:
    module = layer.target.module
    before = {key: value.clone() for key, value in module.state_dict().items()}
    AdapterNetwork([layer]).requires_grad_(False).merge(strength)
    added = {key: value - before[key] for key, value in module.state_dict().items()}
    module.load_state_dict(before)
    return added


def lora(rows: int = 6, columns: int = 4, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"lora_down.weight": (2, columns), "lora_up.weight": (rows, 2)}
    made = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    return made | {"alpha": torch.tensor(3.0)}


def product(tensors: dict[str, Tensor]) -> Tensor:
    scale = float(tensors.get("alpha", torch.tensor(2.0))) / 2
    return tensors["lora_up.weight"] @ tensors["lora_down.weight"] * scale


@pytest.mark.parametrize(("shape", "axis"), [((6, 1), 1), ((6,), 1), ((1, 4), 0)])
def test_a_dora_has_the_lengths_that_it_learned_and_half_of_it_lies_half_way(
    shape: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    module, tensors, lengths = nn.Linear(4, 6), lora(), torch.rand(shape) + 0.5
    path = written(tmp_path / "x.safetensors", tensors | {"dora_scale": lengths})
    added = change(path, module)
    whole = module.weight + product(tensors)
    expected = whole * (lengths.reshape((6, 1) if axis else (1, 4)) / whole.norm(dim=axis, keepdim=True))
    torch.testing.assert_close(module.weight + added["weight"], expected)
    torch.testing.assert_close(change(path, module, 0.5)["weight"], added["weight"] / 2)
    assert not added["bias"].any()


def test_peft_agrees_about_a_dora_and_a_bias(tmp_path: Path) -> None:
    import peft

    torch.manual_seed(2)
    base = nn.Sequential(nn.Linear(4, 6))
    config = peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["0"])
    theirs = peft.get_peft_model(base, config)
    state = {key: value for key, value in theirs.state_dict().items() if "lora_" in key}
    for value in state.values():
        value.copy_(torch.rand(value.shape) + 0.2)
    down, up, lengths = (
        next(value.clone() for key, value in state.items() if part in key)
        for part in ("lora_A", "lora_B", "magnitude")
    )
    module = nn.Linear(4, 6)
    module.load_state_dict({name: base.state_dict()[f"0.base_layer.{name}"] for name in ("weight", "bias")})
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(3.0)}
    path = written(tmp_path / "x.safetensors", tensors | {"dora_scale": lengths[:, None]})
    added = change(path, module)
    merged = cast(Any, theirs).merge_and_unload()
    torch.testing.assert_close(module.weight + added["weight"], merged[0].weight.detach())


@pytest.mark.parametrize("is_shared", [False, True])
def test_peft_turns_inputs_as_we_do(is_shared: bool, tmp_path: Path) -> None:
    import peft

    base = nn.Sequential(nn.Linear(8, 6))
    config = peft.OFTConfig(r=0, oft_block_size=4, target_modules=["0"], block_share=is_shared)
    theirs = peft.get_peft_model(base, config)
    (triangles,) = (value for key, value in theirs.state_dict().items() if "oft_R" in key)
    triangles.copy_(torch.randn(triangles.shape, generator=torch.Generator().manual_seed(0)) / 10)
    module = nn.Linear(8, 6)
    module.load_state_dict({name: base.state_dict()[f"0.base_layer.{name}"] for name in ("weight", "bias")})
    path = written(tmp_path / "x.safetensors", {"oft_R.weight": triangles.clone()})
    added, scaled = change(path, module), tmp_path / "scaled.safetensors"
    merged = cast(Any, theirs).merge_and_unload()
    torch.testing.assert_close(module.weight + added["weight"], merged[0].weight.detach())
    written(scaled, {"oft_R.weight": triangles * 2 * math.sqrt(3), "oft_R.scaled_oft": torch.tensor(1.0)})
    torch.testing.assert_close(change(scaled, module)["weight"], added["weight"])


def test_biases_are_scaled_as_weights_are(tmp_path: Path) -> None:
    tensors = lora() | {"lora_up.bias": torch.arange(6.0)}
    added = change(written(tmp_path / "x.safetensors", tensors), nn.Linear(4, 6), 0.5)
    torch.testing.assert_close(added["weight"], product(tensors) / 2)
    torch.testing.assert_close(added["bias"], torch.arange(6.0) * 1.5 / 2)


def test_tensors_of_several_kinds_add_up(tmp_path: Path) -> None:
    tensors = lora() | {"diff_b": torch.arange(6.0), "scalar": torch.tensor(2.0)}
    added = change(written(tmp_path / "x.safetensors", tensors), nn.Linear(4, 6))
    torch.testing.assert_close(added["weight"], 2 * product(tensors))
    torch.testing.assert_close(added["bias"], 2 * torch.arange(6.0))


def test_older_glora_has_its_factors_the_other_way_round(tmp_path: Path) -> None:
    module, rng = nn.Linear(5, 7), torch.Generator().manual_seed(0)
    sides = {"a1": (5, 2), "a2": (2, 5), "b1": (7, 2), "b2": (2, 5)}
    new = {f"{name}.weight": torch.randn(shape, generator=rng) for name, shape in sides.items()}
    exchanged = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    old = {f"{name}.weight": new[f"{other}.weight"] for name, other in exchanged.items()}
    found = change(written(tmp_path / "new.safetensors", new), module)["weight"]
    assert torch.equal(change(written(tmp_path / "old.safetensors", old), module)["weight"], found)


def test_what_is_set_takes_the_place_of_a_norm_at_any_strength(tmp_path: Path) -> None:
    norm = nn.LayerNorm(5, bias=False)
    path = written(tmp_path / "x.safetensors", {"set_weight": torch.arange(5.0)})
    for strength in (0.5, 1.0):
        torch.testing.assert_close(norm.weight + change(path, norm, strength)["weight"], torch.arange(5.0))


@pytest.mark.parametrize(
    ("module", "name", "inputs"),
    [
        (RMSNorm(8), "set_weight", torch.randn(2, 8)),
        (nn.Embedding(8, 4), "diff", torch.tensor([[1, 7]])),
    ],
)
def test_norms_and_embeddings_act_live_as_merged(
    module: nn.Module, name: str, inputs: Tensor, tmp_path: Path
) -> None:
    (weight,) = module.requires_grad_(False).parameters()
    path = written(tmp_path / "x.safetensors", {name: torch.randn(weight.shape)})
    (layer,) = network_from_file(path, [AdapterTarget("unet_x", module, DENOISER)]).layers
    before, handle = module(inputs), attach(layer)
    live = module(inputs)
    handle.remove()
    AdapterNetwork([layer]).merge()
    torch.testing.assert_close(live, module(inputs))
    assert not torch.allclose(live, before, atol=1e-2)


def test_projections_that_are_given_apart_change_their_own_rows() -> None:
    module, third = nn.Linear(4, 18), lora(seed=1) | {"dora_scale": torch.rand(6, 1)}
    parts = {f"part.0.{name}": value for name, value in lora().items()}
    parts |= {f"part.2.{name}": value for name, value in third.items()}
    target = AdapterTarget("unet_x", module.requires_grad_(False), DENOISER, splits=(6, 6, 6))
    added = added_by(FormulaLayer.from_tensors(target, parts))["weight"]
    torch.testing.assert_close(added[:6], product(lora()))
    assert not added[6:12].any()
    whole = module.weight[12:] + product(third)
    expected = decomposition.decomposed(whole, third["dora_scale"]) - module.weight[12:]
    torch.testing.assert_close(added[12:], expected)
    with pytest.raises(UserError, match=r"lora_unet_x does not fit this model, whose weight there is 18x4"):
        FormulaLayer.from_tensors(replace(target, splits=()), parts)


def test_halves_are_exchanged_after_a_change_is_made(tmp_path: Path) -> None:
    module = nn.Linear(4, 6)
    other = nn.Linear(4, 6)
    other.load_state_dict({key: value.roll(3, 0) for key, value in module.state_dict().items()})
    tensors = lora() | {"dora_scale": torch.rand(6, 1) + 0.5}
    plain = change(written(tmp_path / "x.safetensors", tensors), module)["weight"]
    path = written(tmp_path / "y.safetensors", tensors | {"swap_halves": torch.tensor(1)})
    torch.testing.assert_close(change(path, other)["weight"], plain.roll(3, 0))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"diff": torch.ones(5, 4)}, "does not fit this model, whose weight there is 6x4; use a file made"),
        ({"diff": torch.ones(6, 4), "strange": torch.ones(1)}, "holds strange, which is not known here"),
        ({"oft_blocks": torch.ones(4, 2, 2)}, "does not fit this model"),
        ({"set_weight": torch.ones(3)}, "does not fit this model"),
        ({**lora(), "reshape_weight": torch.tensor([6, 8])}, "needs a weight of 6x8, where this model has"),
        ({**lora(), "diff_b": torch.ones(6), "hada_w1_a": torch.ones(1)}, "without hada_w1_b"),
        ({"part.0.lora_down.weight": torch.ones(2, 4)}, "without lora_up.weight"),
    ],
)
def test_what_does_not_fit_is_one_line(tensors: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        change(written(tmp_path / "x.safetensors", tensors), nn.Linear(4, 6), splits=(3, 3))


def test_a_bias_that_a_model_lacks_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {"diff_b": torch.ones(6)})
    with pytest.raises(UserError, match="changes a bias, which this model lacks"):
        change(path, nn.Linear(4, 6, bias=False))


def test_names_that_no_formula_uses_are_told() -> None:
    tensors = lora() | {"part.1.diff": torch.ones(1), "part.1.odd": torch.ones(1), "w_norm": torch.ones(1)}
    assert composition.unknown(tensors) == ["part.1.odd"]
    assert composition.parameters_of(tensors) == ("weight",)


def test_what_is_only_read_is_not_trained(tmp_path: Path) -> None:
    tensors = lora(24, 8) | {"dora_scale": torch.ones(24, 1)}
    path = str(written(tmp_path / "x.safetensors", tensors, "unet_double_0_qkv"))
    config = NetworkConfig(network_weights=path, dim_from_weights=True, network_module="networks.lora_flux")
    plan = network_modules.resolve(Run("", "flux", [config]))
    with pytest.raises(
        UserError, match=r"lora_unet_double_0_qkv is DoRA, which is not trained here; train it"
    ):
        plan.build(toy.ToyFamily(), toy.models())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--network_module glora is not trained here; use lycoris.kohya"):
        network_modules.resolve(Run("", "flux", [NetworkConfig(network_module="glora")]))


def test_an_alpha_of_0_switches_off_what_it_scales_and_limits_nothing_else(tmp_path: Path) -> None:
    off = lora() | {"dora_scale": torch.ones(6, 1), "alpha": torch.tensor(0.0)}
    assert not change(written(tmp_path / "off.safetensors", off), nn.Linear(4, 6))["weight"].any()
    free = {"oft_blocks": torch.eye(3).roll(1, 0).repeat(2, 1, 1), "alpha": torch.tensor(0.0)}
    assert change(written(tmp_path / "free.safetensors", free), nn.Linear(4, 6))["weight"].abs().max() > 0.1
