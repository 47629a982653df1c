"""Convolutions as matrix products: the same numbers, and the plain kernel wherever it must be used."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sfumato.models.components.unet import unet
from sfumato.nn import convolution
from sfumato.nn.convolution import is_quickened, quicken

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class Products:
    """Counts how often a convolution was computed as a matrix product."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(convolution, "pointwise", self._counting(convolution.pointwise))
        monkeypatch.setattr(convolution._Product, "apply", self._counting(convolution._Product.apply))

    def _counting(self, product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*arguments: object) -> Tensor:
            self.count += 1
            return product(*arguments)

        return counted


@pytest.fixture(autouse=True)
def _small_kernels_count_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "LEAST_WEIGHTS", 1)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    return Products(monkeypatch)


def frozen(**options: object) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(12, 8, **{"kernel_size": 3, "padding": 1, **options}).requires_grad_(False)  # type: ignore[arg-type]


def quickened(layer: nn.Conv2d) -> nn.Conv2d:
    other = copy.deepcopy(layer)
    quicken(other)
    return other


def image(height: int = 4, width: int = 6, batch: int = 2) -> Tensor:
    return torch.randn(batch, 12, height, width, generator=torch.Generator().manual_seed(1))


def output_and_gradient(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    output = layer(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    return output.detach(), torch.autograd.grad((output * weights).sum(), x)[0]


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"stride": 2}])
@pytest.mark.parametrize("height", [4, 5])
@pytest.mark.parametrize("few", [0, 128])
def test_output_and_gradient_are_those_of_the_convolution(
    dtype: torch.dtype,
    height: int,
    options: dict[str, int],
    few: int,
    products: Products,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convolution, "FEW_PIXELS", few)
    layer = frozen(**options)
    expected = output_and_gradient(layer, image(height))
    assert products.count == 0
    found = output_and_gradient(quickened(layer.to(dtype)), image(height).to(dtype))
    assert products.count == 1
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is dtype
        assert (one.float() - other).abs().max() <= BOUNDS[dtype] * other.abs().max()


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("bias", [True, False])
def test_kernels_of_one_pixel_are_products_however_many_pixels_there_are(
    dtype: torch.dtype, bias: bool, products: Products
) -> None:
    both = nn.Sequential(frozen(), nn.Conv2d(8, 5, 1, bias=bias).requires_grad_(False))
    x = image(24, 32)
    expected = output_and_gradient(both, x)
    quick = copy.deepcopy(both).to(dtype)
    quicken(quick)
    found = output_and_gradient(quick, x.to(dtype, memory_format=torch.channels_last))
    assert products.count == 1, "the kernel of one pixel, and not the other: 1536 pixels are many"
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype is dtype
        assert (one.float() - other).abs().max() <= BOUNDS[dtype] * other.abs().max()


def test_kernels_of_one_pixel_take_images_with_channels_first_too(products: Products) -> None:
    both = nn.Sequential(frozen(), nn.Conv2d(8, 5, 1))
    quicken(both)
    x = torch.randn(2, 8, 4, 6)
    torch.testing.assert_close(both[1](x), both[1]._conv_forward(x, both[1].weight, both[1].bias))
    assert products.count == 0


def test_weights_of_one_pixel_are_trained_like_those_of_the_convolution() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(8, 5, 1), torch.randn(2, 8, 4, 6).to(memory_format=torch.channels_last)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    output = convolution.pointwise(x, layer.weight, layer.bias)
    found = torch.autograd.grad(output.square().sum(), list(layer.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({}, True),
        ({"padding": "same"}, True),
        ({"stride": 2}, False),
        ({"padding": 1}, False),
        ({"groups": 2}, False),
    ],
)
def test_only_layers_that_treat_each_pixel_alone_are_pointwise(options: dict[str, int], answer: bool) -> None:
    assert convolution.is_pointwise(nn.Conv2d(8, 4, 1, **options)) is answer  # type: ignore[arg-type]
    assert not convolution.is_pointwise(nn.Conv2d(8, 4, 3, **options))  # type: ignore[arg-type]


def test_autocast_decides_the_format_as_it_does_for_convolutions(products: Products) -> None:
    layer = frozen()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, quick = layer(image()), quickened(layer)(image())
    assert products.count == 1
    assert plain.dtype is quick.dtype is torch.bfloat16
    torch.testing.assert_close(quick, plain, rtol=2e-2, atol=2e-2)


def test_gradients_reach_a_float32_input_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, gradient = output_and_gradient(quickened(frozen()), image())
    expected = output_and_gradient(frozen(), image())[1]
    assert gradient.dtype is torch.float32
    assert (gradient - expected).abs().max() <= 2e-2 * expected.abs().max()


@pytest.mark.parametrize(
    "options",
    [{"stride": 3}, {"padding": 0}, {"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}],
)
def test_other_convolutions_stay_as_they_are(options: dict[str, int], products: Products) -> None:
    layer = frozen(**options)
    torch.testing.assert_close(quickened(layer)(image()), layer(image()))
    assert products.count == 0


def test_a_model_without_large_kernels_stays_as_it_is(
    products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = frozen()
    monkeypatch.setattr(convolution, "LEAST_WEIGHTS", layer.weight.numel() + 1)
    other = quickened(layer)
    assert other.weight.stride() == layer.weight.stride()
    assert torch.equal(other(image()), layer(image()))
    assert products.count == 0


def test_large_images_take_the_convolution(products: Products) -> None:
    layer = quickened(frozen())
    layer(image(16, 16, 1))
    assert products.count == 1
    layer(image(16, 16, 2))
    assert products.count == 1
    halving = quickened(frozen(stride=2))
    halving(image(31, 32, 1))
    assert products.count == 2
    halving(image(33, 32, 1))
    assert products.count == 2


def test_weights_that_are_trained_get_their_gradient(products: Products) -> None:
    layer = quickened(frozen()).requires_grad_(True)
    layer(image()).sum().backward()
    assert products.count == 0
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().max() > 0


def test_a_copy_computes_with_its_own_weights() -> None:
    layer = quickened(frozen(bias=False))
    other = copy.deepcopy(layer)
    other.weight.zero_()
    assert not other(image()).any()
    assert layer(image()).any()


def test_hooks_and_names_are_those_of_a_convolution() -> None:
    layer = quickened(frozen())
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    layer(image())
    assert len(seen) == 1
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("dtype", "device", "answer"),
    [
        (torch.float32, "cpu", False),
        (torch.bfloat16, "cpu", True),
        (torch.float32, "cuda", False),
        (torch.float16, "cuda", True),
        (torch.bfloat16, "meta", False),
    ],
)
def test_what_is_quickened_depends_on_format_and_device(
    dtype: torch.dtype, device: str, answer: bool
) -> None:
    assert is_quickened(dtype, torch.device(device)) is answer


def test_a_unet_predicts_and_learns_the_same_when_quickened() -> None:
    shape = unet.UnetShape(4, 4, 1, (32, 64), (1, 1), 1, 16, 0, False)
    torch.manual_seed(0)
    model = unet.build(shape).to_empty(device="cpu").requires_grad_(False).eval()
    for name, weight in model.named_parameters():
        is_norm = weight.dim() == 1 and name.endswith("weight")
        weight.fill_(1.0) if is_norm else weight.normal_(0, 0.05)
    noisy, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)

    def predicted(model: nn.Module) -> tuple[Tensor, Tensor]:
        def run(x: Tensor) -> Tensor:
            return unet.predict(model, x, torch.tensor([20.0, 900.0]), text)

        x = noisy.clone().requires_grad_()
        output = run(x)
        return output.detach(), torch.autograd.grad(output.square().sum(), x)[0]

    expected = predicted(model)
    quicken(model)
    for found, plain in zip(predicted(model), expected, strict=True):
        assert not torch.equal(found, plain), "nothing was quickened"
        assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()
