"""Convolutions of pictures with few pixels and many channels, as matrix products.

The deep levels of a UNet have 16 or 64 pixels and millions of weights. There a CPU's convolution kernels
spend their time on bringing the weights into an order of their own, in every call; a matrix product takes
them as they lie, if they lie with channels last. Frozen weights only: no gradient of theirs is ever computed.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.device import kind_of

MOST_PIXELS = 256
"""Up to how many pixels of output, in the whole batch, the matrix product is the faster one on a CPU."""
LEAST_WEIGHTS = 2**20
"""Kernels with fewer weights are put in order in no time."""


def is_quickened(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether models stored in `dtype` are quickened: where there are kernels for channels last.

    In float32 they stay as they are: channels last gains nothing there and sums norms less precisely.
    """
    return dtype in (torch.bfloat16, torch.float16) and device.type in ("cpu", "cuda")


def quicken(module: nn.Module) -> None:
    """Lay a frozen model's weights and pictures out with channels last, and shortcut its large convolutions.

    Results stay the same up to rounding. The layers stay plain `nn.Conv2d`: only their `forward` is replaced.
    A model without large convolutions stays as it is.
    """
    layers = [child for child in module.modules() if isinstance(child, nn.Conv2d) and _is_large(child)]
    if layers:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in layers:
        cast(nn.Module, layer).forward = partial(_forward, layer)


def _is_large(layer: nn.Conv2d) -> bool:
    """Return whether a layer has many weights, and makes a result for every pixel or every second."""
    return (
        layer.weight.numel() >= LEAST_WEIGHTS
        and (layer.kernel_size, layer.padding) in (((1, 1), (0, 0)), ((3, 3), (1, 1)))
        and layer.stride in ((1, 1), (2, 2))
        and (layer.dilation, layer.groups) == ((1, 1), 1)
        and layer.padding_mode == "zeros"
    )


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
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
        border = weight.shape[-1] // 2
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, border, border, border, border))
        around = [padded[place] for place in _places(weight, x.shape, stride)]
        y = F.linear(torch.cat(around, dim=-1), _matrix(weight), bias)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.BackwardCFunction, gradient: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        batch, channels, height, width = ctx.shape  # type: ignore[attr-defined]
        pieces = (gradient.permute(0, 2, 3, 1) @ _matrix(weight)).split(channels, dim=-1)
        size = weight.shape[-1]
        padded = gradient.new_zeros(batch, height + size - 1, width + size - 1, channels)
        places = _places(weight, ctx.shape, ctx.stride)  # type: ignore[attr-defined]
        for place, piece in zip(places, pieces, strict=True):
            padded[place] += piece
        border = size // 2
        inside = padded[:, border : border + height, border : border + width]
        return inside.permute(0, 3, 1, 2), None, None, None


def _matrix(weight: Tensor) -> Tensor:
    """Return (O, K K I) of a weight (O, I, K, K): a view, if its channels lie last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _places(weight: Tensor, shape: torch.Size, stride: int) -> list[tuple[slice, slice, slice]]:
    """Return where in a padded picture (B, H + K - 1, W + K - 1, C) each weight's pixels lie.

    Args:
        shape: (B, C, H, W) of the picture without its border.
    """
    size, (height, width) = weight.shape[-1], shape[2:]
    return [
        (slice(None), slice(i, i + height, stride), slice(j, j + width, stride))
        for i in range(size)
        for j in range(size)
    ]


def _count(length: int, layer: nn.Conv2d) -> int:
    """Return how many of `length` pixels in a row have a result."""
    return (length - 1) // layer.stride[0] + 1
