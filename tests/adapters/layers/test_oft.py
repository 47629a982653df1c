"""OFT turns outputs by orthogonal blocks, within its limit, right under several threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.layers.layer import Dropouts, attach, merge
from sfumato.adapters.layers.oft import Oft
from sfumato.adapters.layers.rotation import inverse_by_products, turn_of
from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.plan import NetworkPlan
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget
from sfumato.nn.device import standing_for
from tests.adapters import toy


def target(module: nn.Module, splits: tuple[int, ...] = ()) -> AdapterTarget:
    return AdapterTarget("unet_x", module, DENOISER, splits=splits)


def learned(layer: Oft) -> Oft:
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3)
    return layer.eval()


FORMS = [
    pytest.param(nn.Linear(10, 24), (2, 5, 10), None, id="linear"),
    pytest.param(nn.Linear(10, 24, bias=False), (2, 10), (), id="list of one"),
    pytest.param(nn.Linear(10, 24), (2, 5, 10), (8, 16), id="fused"),
    pytest.param(nn.Conv2d(6, 24, 3, stride=2, padding=1), (2, 6, 8, 8), None, id="convolution"),
]
forms = pytest.mark.parametrize(("module", "shape", "splits"), FORMS)


def make(module: nn.Module, splits: tuple[int, ...] | None, constraint: float = 1.0) -> Oft:
    return Oft(target(module, splits or ()), 4, constraint, splits=splits)


@forms
def test_untrained_layers_change_nothing_and_learn(module: nn.Module, shape: Any, splits: Any) -> None:
    layer, inputs = make(module, splits), torch.randn(shape)
    before = module(inputs)
    handle = attach(layer)
    assert torch.equal(module(inputs), before)
    module(inputs).pow(3).sum().backward()
    handle.remove()
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@forms
def test_acting_live_equals_being_merged(module: Any, shape: Any, splits: Any) -> None:
    layer, inputs = learned(make(module, splits)), torch.randn(shape)
    layer.strength = 0.7
    before = module(inputs)
    handle = attach(layer)
    live = module(inputs)
    layer.strength = torch.tensor([0.7, 0.0])
    torch.testing.assert_close(module(inputs)[0], live[0])
    torch.testing.assert_close(module(inputs)[1], before[1])
    handle.remove()
    assert (live - before).abs().max() > 0.1
    kept = module.weight.detach().clone()
    merge(layer, 0.7)
    torch.testing.assert_close(module(inputs), live, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        module.weight.copy_(kept)


@forms
def test_lengths_and_angles_of_the_weight_stay(module: nn.Module, shape: Any, splits: Any) -> None:
    layer = learned(make(module, splits))
    weight = module.get_parameter("weight").detach().flatten(1)
    turned = weight + layer.delta().flatten(1)
    assert (turned - weight).abs().max() > 0.1
    torch.testing.assert_close(turned.T @ turned, weight.T @ weight, rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_of_the_cayley_transform_written_out() -> None:
    module = nn.Linear(5, 12).requires_grad_(False)
    layer, inputs = learned(Oft(target(module), 2, 0.05)), torch.randn(3, 5, requires_grad=True)
    blocks = next(layer.parameters())
    attach(layer)
    found = torch.autograd.grad(module(inputs).pow(2).sum(), [inputs, blocks])
    skew = blocks - blocks.mT
    norm = skew.norm()
    skew = skew * (norm.clamp(max=0.05 * 12) / norm)
    eye = torch.eye(6)
    rotation = torch.block_diag(*torch.linalg.solve(eye + skew, eye - skew))
    written_out = inputs @ (rotation @ module.weight).T + module.bias
    expected = torch.autograd.grad(written_out.pow(2).sum(), [inputs, blocks])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_each_projection_has_its_own_limit() -> None:
    layer = learned(Oft(target(nn.Linear(5, 24), (8, 16)), 2, 1e-3, splits=(8, 16)))
    norms = [turn.norm().item() for turn in layer._turns()]
    assert norms == pytest.approx([2 * 8e-3, 2 * 16e-3], rel=1e-3)  # R - I is nearly -2 Q


def test_the_share_that_is_turned_is_that_of_a_weight_with_orthogonal_rows() -> None:
    module = nn.Linear(24, 24, bias=False)
    nn.init.orthogonal_(module.weight)
    layer = learned(make(module, None))
    share = layer.delta().norm() / module.weight.norm()
    assert share > 0.1
    torch.testing.assert_close(layer.turned_share(), share.detach(), rtol=1e-5, atol=0)


def test_two_threads_turn_as_one_does() -> None:
    """Batched LU raises, hangs or is wrong with two threads on some processors."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            skew = torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(0)) / 40
            skew = (skew - skew.mT).requires_grad_()
            rotation = turn_of(skew, 2.0) + torch.eye(256)
            rotation.pow(3).sum().backward()
            assert skew.grad is not None
            found.append((rotation.detach(), skew.grad))
    finally:
        torch.set_num_threads(before)
    (one, slope), (two, slope_of_two) = found
    assert (two @ two.mT - torch.eye(256)).abs().max() < 1e-5
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(slope_of_two, slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_a_small_turn_loses_no_digits(size: float) -> None:
    skew = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0)) * size
    skew = skew - skew.mT
    eye = torch.eye(8, dtype=torch.float64)
    expected = torch.linalg.solve(eye + skew.double(), eye - skew.double()) - eye
    assert (turn_of(skew, 1.0) - expected).norm() < 1e-6 * expected.norm()


def test_halves_are_turned_as_whole_numbers_are() -> None:
    module = nn.Linear(16, 32, bias=True)
    layer, inputs = learned(Oft(target(module), 4, 0.02)), torch.randn(4, 16)
    attach(layer)
    expected = module(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@forms
def test_a_file_says_all_that_is_needed(module: nn.Module, shape: Any, splits: Any, tmp_path: Path) -> None:
    layer = learned(make(module, splits, 0.01))
    path = tmp_path / "x.safetensors"
    AdapterNetwork([layer]).save(path, None, {})
    (again,) = network_from_file(path, [layer.target]).layers
    assert isinstance(again, Oft)
    torch.testing.assert_close(again.delta(), layer.delta())
    with pytest.raises(UserError, match="do not divide this model's 25 outputs; use a file made for"):
        network_from_file(path, [target(nn.Linear(10, 25))])


def test_a_whole_layer_can_be_left_out() -> None:
    module = nn.Linear(4, 8)
    layer = Oft(target(module), 2, 1.0, Dropouts(module=0.5))
    learned(layer).train()
    inputs = torch.randn(3, 4)
    before = module(inputs)
    attach(layer)
    outputs: list[Tensor] = [module(inputs) for _ in range(20)]
    assert 0 < sum(torch.equal(output, before) for output in outputs) < 20


def resolve(*network_args: str, family: str = "flux", **options: Any) -> NetworkPlan:
    module = "networks.oft_flux" if family == "flux" else "networks.oft"
    config = NetworkConfig(network_module=module, network_args=network_args or None, **options)
    return network_modules.resolve(Run("", family, [config]))


def build(*network_args: str, **options: Any) -> AdapterNetwork:
    made = resolve(*network_args, network_alpha=1e-3, **options).build(toy.ToyFamily(), toy.models())  # type: ignore[arg-type]
    assert isinstance(made, AdapterNetwork)
    return made


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ((), 2),
        (("enable_all_linear=False",), 2),
        (("enable_all_linear=True",), 10),
        (("enable_all_linear=1",), 10),
    ],
)
def test_the_attention_is_turned_or_all_that_is_asked_for(arguments: tuple[str, ...], count: int) -> None:
    network = build(*arguments, network_dim=4)
    assert next(layer.name for layer in network.layers) == "oft_unet_double_0_qkv"
    assert len(network.layers) == count
    assert not network.can_limit_norms


def test_outputs_that_cannot_be_cut_evenly_are_one_line() -> None:
    with pytest.raises(UserError, match=r"--network_dim 5 does not divide the 8 outputs of .*: use 4$"):
        build(network_dim=5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"network_train_text_encoder_only": True}, "adapts no text encoder"),
        ({"network_args": ("enable_conv=True",)}, "enable_conv is unknown"),
        ({"network_args": ("enable_all_linear=maybe",)}, "give True or False"),
        ({"network_args": ("rank_dropout=0.5",)}, "rank_dropout is unknown"),
        ({"network_args": ("loraplus_lr_ratio=4",)}, "loraplus_lr_ratio is unknown"),
    ],
)
def test_what_oft_cannot_do_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(*options.pop("network_args", ()), **options)


def test_no_limit_at_all_is_refused_and_a_loose_one_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="lets OFT learn nothing"):
        resolve(network_alpha=0).build(toy.ToyFamily(), toy.models())  # type: ignore[arg-type]
    resolve().build(toy.ToyFamily(), toy.models())  # type: ignore[arg-type]
    assert "--network_alpha 1 hardly limits OFT" in caplog.text


@pytest.mark.parametrize("largest", [0.0, 0.2, 3.0, 500.0])
@pytest.mark.parametrize("share", [1.0, 0.01])
def test_an_inverse_by_products_is_as_exact_as_one_by_factors(largest: float, share: float) -> None:
    rng = torch.Generator().manual_seed(2)
    drawn = torch.randn(3, 40, 40, generator=rng)
    skew = drawn - drawn.mT
    skew *= share * largest / torch.linalg.matrix_norm(skew, 2)[:, None, None]
    matrices = torch.eye(40) + skew
    exact = torch.linalg.inv(matrices.double())
    found, factored = inverse_by_products(matrices, largest), torch.linalg.inv(matrices)
    assert (found - exact).norm() < 2 * (factored - exact).norm() + 1e-6 * exact.norm()


def test_a_card_gets_no_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = learned(make(nn.Linear(10, 24), None))
    expected = layer.delta()
    monkeypatch.setattr(torch.linalg, "inv", None)
    with standing_for("cuda"):
        assert torch.allclose(layer.delta(), expected, atol=1e-6)
