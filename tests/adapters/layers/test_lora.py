"""The maths of one LoRA layer."""

import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.layers.layer import attach, limit_norm, merge
from sfumato.adapters.layers.lora import Dropouts, Lora
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget
from sfumato.nn import low_rank

LAYERS = {
    "linear": (lambda: nn.Linear(6, 10), (3, 5, 6)),
    "linear of vectors": (lambda: nn.Linear(6, 10), (3, 6)),
    "convolution 1x1": (lambda: nn.Conv2d(6, 10, 1), (3, 6, 4, 5)),
    "convolution 3x3": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1), (3, 6, 8, 7)),
}
layers = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def target(module: nn.Module, splits: tuple[int, ...] = ()) -> AdapterTarget:
    return AdapterTarget("unet_x", module, DENOISER, splits=splits)


def trained(layer: Lora) -> Lora:
    nn.init.normal_(layer.lora_up.weight)
    return layer


@layers
def test_untrained_adapter_leaves_output_unchanged(make, shape) -> None:
    module, inputs = make(), torch.randn(shape)
    before = module(inputs)
    attach(Lora(target(module), rank=4))
    assert torch.equal(module(inputs), before)


@layers
def test_live_and_merged_agree(make, shape) -> None:
    torch.manual_seed(0)
    module, inputs = make(), torch.randn(shape)
    layer = trained(Lora(target(module), rank=4, alpha=2.0))
    layer.strength = 0.7
    handle = attach(layer)
    live = module(inputs)
    handle.remove()
    plain = module(inputs)
    merge(layer)
    assert (live - plain).abs().max() > 0.1
    torch.testing.assert_close(module(inputs), live, rtol=1e-5, atol=1e-5)


def test_output_follows_the_formula() -> None:
    module, inputs = nn.Linear(6, 10), torch.randn(3, 5, 6)
    layer = trained(Lora(target(module), rank=4, alpha=2.0))
    change = inputs @ layer.lora_down.weight.T @ layer.lora_up.weight.T * (2.0 / 4)
    torch.testing.assert_close(layer.change(inputs, module(inputs)), module(inputs) + change)


def test_down_is_drawn_within_its_bound_and_up_is_zero() -> None:
    layer = Lora(target(nn.Linear(400, 10)), rank=64)
    bound = 1 / math.sqrt(400)  # kaiming_uniform with a = sqrt(5)
    assert 0.98 * bound < layer.lora_down.weight.abs().max() <= bound
    assert not layer.lora_up.weight.any()


@pytest.mark.parametrize(
    ("alpha", "dtype", "value", "scale"),
    [
        (1, torch.int64, 1, 0.25),
        (1.0, torch.float32, 1, 0.25),
        (8.0, torch.float32, 8, 2.0),
        (None, torch.int64, 4, 1.0),
        (0, torch.int64, 4, 1.0),
    ],
)
def test_alpha_keeps_the_type_it_was_given(alpha, dtype, value, scale) -> None:
    layer = trained(Lora(target(nn.Linear(6, 10)), 4, alpha))
    assert layer.alpha.dtype == dtype
    assert layer.alpha.item() == value
    torch.testing.assert_close(layer.delta(), layer.lora_up.weight @ layer.lora_down.weight * scale)


def test_loading_another_alpha_changes_the_scale() -> None:
    first, second = (trained(Lora(target(nn.Linear(6, 10)), 4, alpha)) for alpha in (2.0, 8.0))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.delta(), first.delta())


def test_strength_may_differ_from_sample_to_sample() -> None:
    module, inputs = nn.Linear(6, 10), torch.randn(2, 5, 6)
    layer = trained(Lora(target(module), 4))
    full = layer.change(inputs, module(inputs)) - module(inputs)
    layer.strength = torch.tensor([0.0, 0.5])
    change = layer.change(inputs, module(inputs)) - module(inputs)
    torch.testing.assert_close(change, full * torch.tensor([0.0, 0.5])[:, None, None], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="per sample"):
        merge(layer)


def test_a_strength_per_sample_reaches_all_chunks_of_a_sample() -> None:
    module, inputs = nn.Linear(6, 10), torch.randn(4, 5, 6)
    layer = trained(Lora(target(module), 4))
    layer.strength = torch.tensor([0.0, 1.0])
    change = layer.change(inputs, module(inputs)) - module(inputs)
    assert change.flatten(1).any(1).tolist() == [False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_keeps_its_dtype_and_the_adapter_its_own(dtype: torch.dtype) -> None:
    module, inputs = nn.Linear(6, 10).to(dtype), torch.randn(3, 6).to(dtype)
    layer = trained(Lora(target(module), 4))
    attach(layer)
    output = module(inputs)
    assert output.dtype == dtype
    output.float().sum().backward()
    assert layer.lora_down.weight.grad is not None
    assert layer.lora_down.weight.grad.dtype == torch.float32


def test_autocast_computes_in_its_dtype_and_learns_in_float32() -> None:
    module, inputs = nn.Linear(6, 10).bfloat16(), torch.randn(3, 6)
    layer = trained(Lora(target(module), 4))
    attach(layer)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(inputs)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.lora_up.weight.grad is not None
    assert layer.lora_up.weight.grad.dtype == torch.float32


def test_merging_into_fp8_rounds_once() -> None:
    module = nn.Linear(6, 10, bias=False)
    layer = trained(Lora(target(module), 4))
    module.weight.data = module.weight.data.to(torch.float8_e4m3fn)
    expected = (module.weight.float() + layer.delta()).to(torch.float8_e4m3fn)
    merge(layer)
    assert torch.equal(module.weight.float(), expected.float())


def change_of(layer: Lora, module: nn.Module, inputs: Tensor) -> Tensor:
    return layer.change(inputs, module(inputs)) - module(inputs)


def test_dropouts_act_in_training_only() -> None:
    module, inputs = nn.Linear(6, 10), torch.randn(64, 6)
    layer = trained(Lora(target(module), 4, dropouts=Dropouts(neuron=0.5, rank=0.5, module=0.9)))
    layer.eval()
    assert torch.equal(change_of(layer, module, inputs), change_of(layer, module, inputs))
    layer.train()
    assert any(
        not torch.equal(change_of(layer, module, inputs), change_of(layer, module, inputs)) for _ in range(20)
    )


def test_module_dropout_leaves_out_the_whole_layer_as_often_as_asked() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Linear(6, 10), torch.randn(2, 6)
    layer = trained(Lora(target(module), 4, dropouts=Dropouts(module=0.25)))
    left_out = sum(not change_of(layer, module, inputs).any() for _ in range(400))
    assert 70 < left_out < 130


@layers
def test_rank_dropout_drops_whole_ranks_and_keeps_the_mean(make, shape) -> None:
    torch.manual_seed(0)
    module = make()
    inputs = torch.randn(1, *shape[1:]).expand(4000, *shape[1:])
    layer = trained(Lora(target(module), 2, dropouts=Dropouts(rank=0.25)))
    layer.eval()
    with torch.no_grad():
        whole = change_of(layer, module, inputs[:1])
        layer.train()
        dropped = change_of(layer, module, inputs)
    distinct = {tuple(row.round(decimals=3).tolist()) for row in dropped.flatten(1)[:, :3]}
    assert len(distinct) == 4  # each of two ranks is there or not, for the whole sample
    torch.testing.assert_close(
        dropped.mean(0, keepdim=True), whole, rtol=0.1, atol=0.1 * float(whole.abs().max())
    )


def test_neuron_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Linear(6, 10), torch.randn(1, 6).expand(4000, 6)
    layer = trained(Lora(target(module), 8, dropouts=Dropouts(neuron=0.3)))
    with torch.no_grad():
        dropped = change_of(layer, module, inputs).mean(0)
        layer.eval()
        whole = change_of(layer, module, inputs[:1])[0]
    torch.testing.assert_close(dropped, whole, rtol=0.1, atol=0.05 * float(whole.abs().max()))


def test_split_projections_are_adapted_apart_and_keep_their_scale() -> None:
    module, inputs = nn.Linear(6, 10), torch.randn(3, 6)
    layer = trained(Lora(target(module), 2, alpha=1.0, splits=(3, 3, 4)))
    down, up = layer.lora_down.weight.split(2), layer.lora_up.weight.split([3, 3, 4])
    expected = torch.cat([up[i][:, 2 * i : 2 * i + 2] @ down[i] / 2 for i in range(3)])
    torch.testing.assert_close(layer.delta(), expected)
    torch.testing.assert_close(change_of(layer, module, inputs), inputs @ expected.T, rtol=1e-4, atol=1e-5)


def test_a_saved_split_adapter_acts_alike_when_read_as_a_whole() -> None:
    module = nn.Linear(6, 10)
    split = Lora(target(module), 2, alpha=1.0, splits=(3, 3, 4))
    optimizer = torch.optim.AdamW(split.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        change_of(split, module, torch.randn(3, 6)).sum().backward()
        optimizer.step()
    whole = Lora.from_tensors(target(module), split.state_dict())
    whole.load_state_dict(split.state_dict())
    assert (split.lora_up.weight != 0).sum() == 2 * 10  # one block for each projection, zeros around
    torch.testing.assert_close(whole.delta(), split.delta())


def test_what_lies_between_the_blocks_is_not_loaded() -> None:
    module = nn.Linear(6, 10)
    split = Lora(target(module), 2, splits=(3, 3, 4))
    whole = trained(Lora(target(module), 6))
    split.load_state_dict(whole.state_dict())
    assert (split.lora_up.weight != 0).sum() == 2 * 10


def test_layers_that_lora_cannot_adapt_are_refused() -> None:
    with pytest.raises(ValueError, match="not Embedding"):
        Lora(target(nn.Embedding(4, 4)), 2)


@pytest.mark.parametrize("splits", [(), (8, 8, 8)])
def test_a_norm_above_the_limit_is_scaled_to_it_and_others_are_left(splits: tuple[int, ...]) -> None:
    layer = trained(Lora(target(nn.Linear(8, 24)), 4, 2, splits=splits))
    before, norm = layer.delta(), layer.delta().norm()
    left, is_scaled = limit_norm(layer, 2 * norm.item())
    assert not is_scaled
    assert torch.equal(layer.delta(), before)
    torch.testing.assert_close(left, norm)
    left, is_scaled = limit_norm(layer, norm.item() / 4)
    assert is_scaled
    torch.testing.assert_close(left, norm / 4)
    torch.testing.assert_close(layer.delta(), before / 4)


def test_an_untrained_layer_has_norm_zero_and_stays_finite() -> None:
    layer = Lora(target(nn.Linear(8, 8)), 4)
    left, is_scaled = limit_norm(layer, 0.1)
    assert (left.item(), bool(is_scaled)) == (0, False)
    assert all(parameter.isfinite().all() for parameter in layer.parameters())


@layers
@pytest.mark.parametrize("is_mixed", [True, False])
@pytest.mark.parametrize("alpha", [4.0, 2.0])
def test_bfloat16_on_a_cpu_gives_the_outputs_and_gradients_of_float32(make, shape, alpha, is_mixed) -> None:
    torch.manual_seed(0)
    module = make().requires_grad_(False)
    layer = trained(Lora(target(module), 4, alpha))
    inputs = torch.randn(shape).to(
        memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format
    )

    def found(inputs: Tensor) -> list[Tensor]:
        inputs = inputs.clone().requires_grad_()
        output = layer.change(inputs, module(inputs))
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output)
        return [output, *torch.autograd.grad((output * weights).sum(), [inputs, *layer.parameters()])]

    expected = found(inputs)
    module.bfloat16()
    if not is_mixed:
        layer.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        results = found(inputs.bfloat16())
    for one, other in zip(results, expected, strict=True):
        assert (one.float() - other).norm() <= 2e-2 * other.norm()
    assert results[0].dtype is torch.bfloat16
    assert results[-1].dtype is (torch.float32 if is_mixed else torch.bfloat16)


def test_the_change_is_one_product_with_the_sum_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[torch.Size] = []
    add = low_rank.add
    monkeypatch.setattr(low_rank, "add", lambda base, *rest: sums.append(base.shape) or add(base, *rest))
    for make, shape in LAYERS.values():
        module, inputs = make().bfloat16(), torch.randn(shape).bfloat16()
        layer = Lora(target(module), 4).bfloat16()
        output = module(inputs)
        layer.change(inputs, output)
        layer.float().change(inputs, output)
    assert sums == [(3, 5, 10), (3, 10)], "images have their channels first, and float32 stays as it is"
    images = inputs.to(memory_format=torch.channels_last)
    layer.bfloat16().change(images, module.to(memory_format=torch.channels_last)(images))
    assert sums[2] == (3, 10, 4, 4)
