"""Convolutions as matrix products: with a kernel of one pixel, or of few pixels and many channels.

With channels last, pixels are the rows of a matrix, which a kernel of one pixel multiplies as it lies.

The deep levels of a UNet have 16 or 64 pixels and millions of weights. There a CPU's convolution kernels
spend their time on bringing the weights into an order of their own, in every call; a matrix product takes
them as they lie, if they lie with channels last. That is for frozen weights only: no gradient of theirs is
ever computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.device import kind_of

MOST_PIXELS = 256
"""Up to how many pixels of output, in the whole batch, the matrix product is the faster one on a CPU."""
FEW_PIXELS = 128
"""Up to how many the weights are the left factor of the product."""
LEAST_WEIGHTS = 2**20
"""Kernels with fewer weights are put in order in no time."""


def is_quickened(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether models stored in `dtype` are quickened: where there are kernels for channels last.

    In float32 they stay as they are: channels last gains nothing there and sums norms less precisely.
    """
    return dtype in (torch.bfloat16, torch.float16) and device.type in ("cpu", "cuda")


def quicken(module: nn.Module) -> None:
    """Lay a frozen model's weights and images out with channels last, and shortcut its convolutions.

    Results stay the same up to rounding. The layers stay plain `nn.Conv2d`: only their `forward` is replaced.
    A model without large convolutions stays as it is.
    """
    layers = [child for child in module.modules() if isinstance(child, nn.Conv2d)]
    if not any(map(_is_large, layers)):
        return
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in layers:
        if is_pointwise(layer):
            cast(nn.Module, layer).forward = partial(_pointwise, layer)
        elif _is_large(layer):
            cast(nn.Module, layer).forward = partial(_neighbourly, layer)


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Return whether a layer treats each pixel alone, as a Linear layer would."""
    return (
        layer.kernel_size == layer.stride == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
        and layer.groups == 1
    )


def is_matrix(x: Tensor) -> bool:
    """Return whether `pointwise` is faster than a convolution: pixels (B, C, H, W) lie as rows, on a CPU."""
    return kind_of(x) == "cpu" and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the convolution of images with a kernel of one pixel, with channels last.

    Args:
        x: (B, I, H, W), channels last.
        weight: (O, I, 1, 1).
    """
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _is_large(layer: nn.Conv2d) -> bool:
    """Return whether a layer has many weights, and makes a result for every pixel or every second."""
    return (
        layer.weight.numel() >= LEAST_WEIGHTS
        and (layer.kernel_size, layer.padding) == ((3, 3), (1, 1))
        and layer.stride in ((1, 1), (2, 2))
        and (layer.dilation, layer.groups) == ((1, 1), 1)
        and layer.padding_mode == "zeros"
    )


def _pointwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if is_matrix(x):
        return pointwise(x, layer.weight, layer.bias)
    return layer._conv_forward(x, layer.weight, layer.bias)


def _neighbourly(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if not _is_quicker(layer, x):
        return layer._conv_forward(x, layer.weight, layer.bias)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    with torch.autocast("cpu", enabled=False):
        return _Product.apply(x.to(dtype), layer.weight.to(dtype), bias, layer.stride[0])


def _is_quicker(layer: nn.Conv2d, x: Tensor) -> bool:
    return (
        kind_of(x) == "cpu"
        and x.dim() == 4
        and x.shape[0] * _count(x.shape[2], layer) * _count(x.shape[3], layer) <= MOST_PIXELS
        and not layer.weight.requires_grad
        and (layer.bias is None or not layer.bias.requires_grad)
        and layer.weight.is_contiguous(memory_format=torch.channels_last)
    )


class _Product(torch.autograd.Function):
    """A convolution with a border of zeros: the neighbourhood of each pixel times the weights."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride = x.shape, stride  # type: ignore[attr-defined]
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        around = torch.cat(list(_places(padded, stride)), dim=-1)
        y = _times(around.flatten(0, 2), _matrix(weight), bias)
        return y.unflatten(0, around.shape[:3]).permute(0, 3, 1, 2)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.BackwardCFunction, gradient: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        batch, channels, height, width = ctx.shape  # type: ignore[attr-defined]
        pieces = (gradient.permute(0, 2, 3, 1) @ _matrix(weight)).split(channels, dim=-1)
        padded = gradient.new_zeros(batch, height + 2, width + 2, channels)
        places = _places(padded, ctx.stride)  # type: ignore[attr-defined]
        for place, piece in zip(places, pieces, strict=True):
            place += piece
        inside = padded[:, 1:-1, 1:-1].contiguous()
        return inside.permute(0, 3, 1, 2), None, None, None


def _times(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return (P, O), `rows` (P, I) times the transposed `matrix` (O, I), plus `bias` (O,).

    A product's right factor is brought into another order first: let that be the smaller one.
    """
    if len(rows) > FEW_PIXELS:
        return F.linear(rows, matrix, bias)
    product = matrix @ rows.T if bias is None else torch.addmm(bias[:, None], matrix, rows.T)
    return product.T.contiguous()


def _matrix(weight: Tensor) -> Tensor:
    """Return (O, 9 I) of a weight (O, I, 3, 3): a view, if its channels lie last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _places(padded: Tensor, stride: int) -> Iterator[Tensor]:
    """Yield, for each weight of a kernel, which pixels of a padded image (B, H + 2, W + 2, C) it meets."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    for i in range(3):
        for j in range(3):
            yield padded[:, i : i + height : stride, j : j + width : stride]


def _count(length: int, layer: nn.Conv2d) -> int:
    """Return how many of `length` pixels in a row have a result."""
    return (length - 1) // layer.stride[0] + 1
