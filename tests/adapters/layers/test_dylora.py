"""DyLoRA trains a drawn unit of ranks; LoRA-FA never trains down."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sfumato.adapters.layers import lora_fa
from sfumato.adapters.layers.dylora import NestedRanks, draw_below
from sfumato.adapters.layers.layer import attach
from sfumato.adapters.layers.loha import Loha
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.plan import NetworkPlan
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget
from tests.adapters import toy


def layer_of(rank: int = 6, module: nn.Module | None = None) -> Lora:
    torch.manual_seed(0)
    layer = Lora(AdapterTarget("unet_x", module or nn.Linear(5, 7), DENOISER), rank, 3.0)
    nn.init.normal_(layer.lora_up.weight)
    return layer


def rows_with_gradients(layer: Lora) -> tuple[list[int], list[int]]:
    down, up = layer.lora_down.weight.grad, layer.lora_up.weight.grad
    assert down is not None
    assert up is not None
    return down.flatten(1).any(1).nonzero().flatten().tolist(), up.any(
        0
    ).flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize("module", [nn.Linear(5, 7), nn.Conv2d(5, 7, 3, padding=1)], ids=["linear", "conv"])
@pytest.mark.parametrize(
    ("drawn", "unit", "trained"), [(0, 2, [0, 1]), (3, 2, [2, 3]), (5, 3, [3, 4, 5]), (4, 1, [4])]
)
def test_one_unit_is_trained_and_the_change_grows_where_few_ranks_count(
    drawn: int, unit: int, trained: list[int], module: nn.Module
) -> None:
    layer = layer_of(6, module)
    layer.nested = NestedRanks(unit, lambda count: {6: drawn}[count])
    inputs = torch.randn(2, 5, 4, 4) if isinstance(module, nn.Conv2d) else torch.randn(2, 5)
    before = module(inputs)
    handle = attach(layer)
    change = module(inputs) - before
    change.pow(2).sum().backward()
    layer.eval()
    whole = module(inputs) - before
    handle.remove()
    torch.testing.assert_close(change, whole * math.sqrt(6 / (trained[-1] + 1)), rtol=1e-4, atol=1e-5)
    assert rows_with_gradients(layer) == (trained, trained)


def test_a_recomputed_pass_draws_the_same_ranks() -> None:
    module = nn.Linear(5, 7)
    layer = layer_of(8, module)
    layer.nested = NestedRanks(1)
    attach(layer)
    inputs, seen = torch.randn(3, 5, requires_grad=True), []
    for seed in range(8):
        gradients = []
        for run in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
            layer.zero_grad()
            torch.manual_seed(seed)
            run(inputs).pow(2).sum().backward()
            gradients.append(rows_with_gradients(layer))
        assert gradients[0] == gradients[1]
        seen.append(gradients[0][0][0])
    assert len(set(seen)) > 2


def test_draws_are_even_and_the_seed_s() -> None:
    torch.manual_seed(3)
    first = [draw_below(4) for _ in range(400)]
    torch.manual_seed(3)
    assert first == [draw_below(4) for _ in range(400)]
    assert all(70 < first.count(number) < 130 for number in range(4))


def resolve(module: str, *network_args: str, family: str = "sd", **options: Any) -> NetworkPlan:
    config = NetworkConfig(network_module=module, network_args=network_args or None, **options)
    return network_modules.resolve(Run("", family, [config]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("unit=3",), "--network_dim 4 is no multiple of --network_args unit=3"),
        (("unit=0",), "give a number of ranks, 1 or more"),
        (("conv_dim=2",), "conv_dim=2: give 4, which --network_dim is"),
        (("block_dims=1",), "block_dims is unknown"),
        (("rank_dropout=0.1",), "rank_dropout is unknown"),
    ],
)
def test_a_wrong_unit_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve("networks.dylora", *arguments, network_dim=4)


def test_only_up_is_trained_by_lora_fa_whoever_asks() -> None:
    plan = resolve("networks.lora_fa", family="flux", network_dim=2)
    network = plan.build(toy.ToyFamily(), toy.models())  # type: ignore[arg-type]
    assert isinstance(network, AdapterNetwork)
    network.requires_grad_(True)
    names = {name.rpartition(".lora_")[2] for name, _ in network.named_parameters()}
    assert names == {"up.weight"}
    kept = {name.rpartition(".lora_")[2] for name in network.state_dict() if not name.endswith("alpha")}
    assert kept == {"up.weight", "down.weight"}
    groups = network.parameter_groups(1e-3, None, None)
    assert sum(len(group.parameters) for group in groups) == len(network.layers)
    assert (
        network.to(torch.bfloat16).state_dict()[f"{network.layers[0].name}.lora_down.weight"].dtype
        == torch.bfloat16
    )


def test_down_is_drawn_normal_with_the_variance_of_its_sides() -> None:
    layer = Lora(AdapterTarget("unet_x", nn.Linear(900, 10), DENOISER), 100)
    lora_fa.draw(layer)
    assert layer.lora_down.weight.std().item() == pytest.approx(math.sqrt(2 / 1000), rel=0.02)


def test_no_input_is_kept_for_the_backward_pass() -> None:
    layer = layer_of()
    lora_fa.freeze(layer)
    layer.target.module.requires_grad_(False)
    attach(layer)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        layer.target.module(torch.randn(11, 5))
    assert (11, 5) not in saved
    assert (11, 6) in saved


def test_files_of_other_kinds_are_refused() -> None:
    layer = Loha(AdapterTarget("unet_x", nn.Linear(5, 7), DENOISER), 2)
    plan = resolve("networks.lora_fa", family="flux")
    with pytest.raises(UserError, match="trains LoRA files, but lora_unet_x is of another kind"):
        plan.refine(layer)  # type: ignore[attr-defined]
