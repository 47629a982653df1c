"""Dtypes, and Linear layers that store less than they compute with."""

import copy

import pytest
import torch
from torch import nn

from sfumato.errors import UserError
from sfumato.nn import precision


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp16", torch.float16),
        ("BF16", torch.bfloat16),
        ("float", torch.float32),
        ("torch.float8_e4m3fn", torch.float8_e4m3fn),
    ],
)
def test_formats_are_known_by_their_usual_names(name: str, dtype: torch.dtype) -> None:
    assert precision.dtype_named(name) is dtype
    assert precision.dtype_named(precision.name_of(dtype)) is dtype


def test_an_unknown_format_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"--t5xxl_dtype is 'int4'; use one of .*bf16"):
        precision.dtype_named("int4", "--t5xxl_dtype")


def test_fp16_on_a_processor_is_refused_and_bf16_is_not() -> None:
    precision.check_compute(torch.bfloat16, torch.device("cpu"))
    with pytest.raises(UserError, match="--mixed_precision is fp16"):
        precision.check_compute(torch.float16, torch.device("cpu"), "--mixed_precision")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("autocast", [False, True])
def test_stored_layers_compute_and_differentiate_like_their_rounded_weights(
    dtype: torch.dtype, autocast: bool
) -> None:
    torch.manual_seed(0)
    stored = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4, bias=False))
    rounded = copy.deepcopy(stored)
    with torch.no_grad():
        for layer in (rounded[0], rounded[2]):
            layer.weight.copy_(layer.weight.to(dtype))
    precision.store(stored, dtype)
    assert type(stored[0]) is nn.Linear
    assert stored[0].weight.dtype is dtype
    x = torch.randn(3, 5, 8)
    results = []
    for model in (stored, rounded):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = model(leaf)
        out.float().square().sum().backward()
        results.append((out.float(), leaf.grad, model[0].bias.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(
            got, expected, rtol=1e-2 if autocast else 1e-5, atol=1e-2 if autocast else 1e-6
        )


def test_the_backward_pass_keeps_no_wide_copy_of_a_stored_weight() -> None:
    model = nn.Linear(32, 64)
    precision.store(model, torch.float8_e4m3fn)
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randn(2, 32, requires_grad=True))
    assert [tensor.dtype for tensor in kept if tensor.numel() >= 32 * 64] == [torch.float8_e4m3fn]


def test_a_copy_of_a_stored_layer_uses_its_own_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    precision.store(model, torch.float8_e4m3fn)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.zero_()
    x = torch.ones(1, 4)
    assert torch.equal(model(x)[0], model[0].bias)
    assert not torch.equal(twin(x), model(x))


def test_inputs_are_wanted_in_the_format_of_the_weights_or_of_autocast() -> None:
    cpu = torch.device("cpu")
    model = nn.Linear(4, 4).to(torch.bfloat16)
    assert precision.compute_dtype(model, cpu) is torch.bfloat16
    precision.store(model, torch.float8_e4m3fn)
    assert precision.compute_dtype(model, cpu) is torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert precision.compute_dtype(nn.Linear(4, 4), cpu) is torch.bfloat16
    assert precision.compute_dtype(nn.Linear(4, 4), cpu) is torch.float32


def test_others_read_weights_in_8_bits_as_wide_copies_and_what_is_stored_stays() -> None:
    layer = nn.Linear(4, 4)
    precision.store(layer, torch.float8_e4m3fn)
    stored, inputs = layer.weight, torch.randn(2, 4)
    expected = layer(inputs)
    precision.show_widened(layer)
    assert type(layer).__name__ == "Linear"
    assert isinstance(layer, nn.Linear)
    assert torch.equal(layer.weight, stored.to(torch.float32))
    assert next(layer.parameters()) is stored
    assert layer.state_dict()["weight"].dtype is torch.float8_e4m3fn
    assert torch.equal(layer(inputs), expected)
    assert type(copy.deepcopy(layer)) is type(layer)
    del layer.weight
    assert not hasattr(layer, "weight")


def test_weights_can_be_read_in_another_format_for_a_while() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1, dtype=torch.bfloat16, bias=False), nn.Linear(2, 2))
    with precision.shown_as(torch.float32, [model]):
        assert model[0].weight.dtype is torch.float32
        assert model[0].bias is None
        made = type(model[0])(2, 3, 1)  # a layer like it
        assert type(made) is nn.Conv2d
    assert model[0].weight.dtype is torch.bfloat16
    assert type(model[0]) is nn.Conv2d


def test_what_a_device_cannot_do_is_one_line() -> None:
    with pytest.raises(UserError, match="--fp8_base: mps has no 8-bit floats"):
        precision.check_storage(torch.device("mps"), "--fp8_base")
    precision.check_storage(torch.device("cpu"), "--fp8_base")


def test_a_format_that_autocast_drops_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    precision.check_autocast(torch.bfloat16, torch.device("cpu"), "--mixed_precision")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    with pytest.raises(UserError, match="bfloat16, which this PyTorch does not compute in on mps"):
        precision.check_autocast(torch.bfloat16, torch.device("mps"), "--mixed_precision")
