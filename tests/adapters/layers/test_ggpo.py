"""Noise on adapted weights: as wide as the rows and their gradients say, only in training, and resumed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sfumato.adapters.layers.layer import attach
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget
from tests.adapters import toy


def layer_of() -> Lora:
    torch.manual_seed(0)
    layer = Lora(AdapterTarget("unet_x", nn.Linear(40, 30).requires_grad_(False), DENOISER), 4, 2.0)
    nn.init.normal_(layer.lora_up.weight)
    return layer


def change_of(layer: Lora) -> torch.Tensor:
    return (layer.lora_up.weight @ layer.lora_down.weight * 0.5).detach()


def gradient(module: nn.Module) -> torch.Tensor:
    found = module.get_parameter("weight").grad
    assert found is not None
    return found


def test_spread_is_that_of_the_rows_and_of_their_gradients() -> None:
    layer = layer_of()
    noise = layer.add_noise(sigma=0.03, beta=0.02)
    weights = (layer.lora_down.weight, layer.lora_up.weight)
    for weight in weights:
        weight.grad = torch.randn(weight.shape)
    noise.step_ends()
    noise.step_begins()
    slope = 0.5 * (
        layer.lora_up.weight @ gradient(layer.lora_down) + gradient(layer.lora_up) @ layer.lora_down.weight
    )
    torch.testing.assert_close(noise.gradient_norms, slope.norm(dim=1).detach(), rtol=1e-4, atol=1e-5)
    inputs = torch.eye(40)
    drawn = torch.stack([noise.of(inputs) for _ in range(400)])  # each row of inputs finds one column
    own = layer.target.module.get_parameter("weight")
    rows = (own.norm(dim=1).square() + change_of(layer).norm(dim=1).square()).sqrt()
    expected = (0.03 * rows + 0.02 * slope.norm(dim=1).square()) / math.sqrt(30)
    assert drawn.mean().abs() < 0.01
    torch.testing.assert_close(drawn.std(dim=(0, 1)), expected, rtol=0.03, atol=0)


def test_spread_is_what_the_formula_gives_by_hand() -> None:
    layer = Lora(AdapterTarget("unet_x", nn.Linear(2, 2).requires_grad_(False), DENOISER), 1, 2.0)
    values = {
        layer.target.module.get_parameter("weight"): [[3.0, 4.0], [0.0, 2.0]],  # rows of norm 5 and 2
        layer.lora_down.weight: [[1.0, 0.0]],
        layer.lora_up.weight: [[0.0], [0.75]],  # twice the product has rows of norm 0 and 1.5
    }
    for parameter, numbers in values.items():
        parameter.data = torch.tensor(numbers)
    layer.lora_down.weight.grad = torch.tensor([[0.0, 2.0]])
    layer.lora_up.weight.grad = torch.tensor([[1.0], [0.0]])  # gradients (2, 0) and (0, 3)
    noise = layer.add_noise(sigma=0.1, beta=0.01)
    noise.step_begins()
    noise.step_ends()
    torch.manual_seed(4)
    drawn = noise.of(torch.eye(2)).T
    torch.manual_seed(4)
    spread = torch.tensor([[0.1 * 5.0 + 0.01 * 4.0], [0.1 * 2.5 + 0.01 * 9.0]]) / math.sqrt(2)
    torch.testing.assert_close(drawn, torch.randn(2, 2) * spread)


def test_noise_acts_in_training_alone_and_teaches_nothing() -> None:
    layer = layer_of()
    inputs = torch.randn(5, 40)
    attach(layer)
    quiet = layer.target.module(inputs)
    quiet.sum().backward()
    expected = gradient(layer.lora_up)
    layer.zero_grad()
    layer.add_noise(sigma=0.5, beta=0.0)
    torch.manual_seed(1)
    loud = layer.target.module(inputs)
    assert (loud - quiet).abs().mean() > 0.1
    torch.manual_seed(1)
    assert torch.equal(layer.target.module(inputs), loud)
    loud.sum().backward()
    assert torch.equal(gradient(layer.lora_up), expected)
    layer.eval()
    assert torch.equal(layer.target.module(inputs), quiet)


def build(*network_args: str) -> AdapterNetwork:
    config = NetworkConfig(network_dim=2, network_args=network_args)
    network = network_modules.resolve(Run("", "flux", [config])).build(toy.ToyFamily(), toy.models())  # type: ignore[arg-type]
    assert isinstance(network, AdapterNetwork)
    return network


def test_steps_are_followed_and_remembered() -> None:
    network = build("ggpo_sigma=0.1", "ggpo_beta=0.01")
    assert len(network.noises) == len(network.layers)
    network.on_step_start()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    figures = network.on_step_end()
    assert figures["ggpo/change_norm"] == 0  # up is still zero
    assert figures["ggpo/gradient_norm"] > 0
    memory = {k: v for k, v in network.tensors() if k.endswith(".gradient_norms")}
    assert len(memory) == len(network.layers)
    assert all(norms.any() for norms in memory.values())
    assert not memory.keys() & network.state_dict().keys()
    bare = build()
    assert dict(bare.tensors()).keys() == bare.state_dict().keys()
    assert bare.on_step_end() == {}


def test_one_strength_without_the_other_is_one_line() -> None:
    with pytest.raises(UserError, match="ggpo_sigma and ggpo_beta belong together; give both, or none"):
        build("ggpo_sigma=0.1")
