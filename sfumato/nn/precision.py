"""Dtypes: names, what a device can compute in, and weights stored smaller than they are computed.

8-bit floats store but do not add or multiply (Micikevicius et al. 2022, arXiv:2209.05433): a Linear whose
weight is stored so is computed in the format of its input, or of autocast where that is on. The backward pass
widens the 8-bit weight a second time instead of keeping a wide copy, so that training, too, holds one byte
per weight.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import UserError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "no": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "fp8_e5m2": torch.float8_e5m2,
}
"""Every name under which a dtype is known."""


def dtype_named(name: str, option: str = "dtype") -> torch.dtype:
    """Return the dtype of that name.

    Args:
        name: one of `DTYPES`, in any case, with or without `torch.` before it.
        option: where the name was read, for the message.

    Raises:
        UserError: there is no such format.
    """
    dtype = DTYPES.get(name.lower().removeprefix("torch."))
    if dtype is None:
        raise UserError(f"{option} is {name!r}; use one of {', '.join(DTYPES)}")
    return dtype


def name_of(dtype: torch.dtype) -> str:
    """Return the full name of a dtype, e.g. `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def is_storage_only(dtype: torch.dtype) -> bool:
    """Return whether numbers of this format can be kept but not computed with."""
    return dtype.is_floating_point and dtype.itemsize == 1


def computable(dtype: torch.dtype) -> torch.dtype:
    """Return the format that goes with `dtype`: bfloat16 for storage-only formats, otherwise the same."""
    return torch.bfloat16 if is_storage_only(dtype) else dtype


def compute_dtype(module: nn.Module, device: torch.device) -> torch.dtype:
    """Return the format that `module` expects its inputs in: autocast's if that is on, else its weights'."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    own = (weight.dtype for weight in module.parameters() if not is_storage_only(weight.dtype))
    return next((dtype for dtype in own if dtype.is_floating_point), torch.bfloat16)


def check_compute(dtype: torch.dtype, device: torch.device, option: str = "mixed_precision") -> None:
    """Raise UserError if `device` cannot compute in `dtype`; some libraries drop such a wish silently."""
    if dtype is torch.float16 and device.type == "cpu":
        raise UserError(f"{option} is fp16, which a CPU cannot compute well in; use bf16 or fp32")
    if dtype is torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"{option} is bf16, which this graphics card does not have; use fp16")


def check_autocast(dtype: torch.dtype, device: torch.device, option: str) -> None:
    """Raise UserError if autocast would say in a warning that it does nothing on `device`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast(device.type, dtype):
            is_dropped = not torch.is_autocast_enabled(device.type)
    if is_dropped:
        raise UserError(
            f"{option} is {name_of(dtype)}, which this PyTorch does not compute in on {device.type}; "
            "use float32 (no), or a newer PyTorch"
        )


def check_storage(device: torch.device, option: str) -> None:
    """Raise UserError if `device` cannot hold 8-bit floats."""
    if device.type == "mps":
        raise UserError(f"{option}: {device.type} has no 8-bit floats; leave it out")


def linear_weights(module: nn.Module) -> set[str]:
    """Return the names of all weights that may be stored in 8 bits: those of Linear layers."""
    return {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, nn.Linear)}


def store(module: nn.Module, dtype: torch.dtype, names: Iterable[str] | None = None) -> None:
    """Keep the weights of Linear layers in a storage-only format from now on, frozen.

    Args:
        names: the weights to store; all of `linear_weights(module)` where None.
    """
    for name in linear_weights(module) if names is None else names:
        weight = module.get_parameter(name)
        weight.requires_grad_(False)
        weight.data = weight.data.to(dtype)
    widen_stored(module)


def widen_stored(module: nn.Module) -> None:
    """Let every Linear with a storage-only weight compute in its input's format.

    The layers stay plain `nn.Linear`: only their `forward` is replaced, as adapters do once more on top.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear) and is_storage_only(child.weight.dtype):
            child.weight.requires_grad_(False)
            cast(nn.Module, child).forward = partial(_widened_linear, child)


def show_widened(module: nn.Module) -> None:
    """Let whoever reads a storage-only weight get a copy in float32; what is stored stays as it is.

    For others' code, which adds small changes to the weights of layers that it adapts.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear) and is_storage_only(child.weight.dtype):
            cast(Any, child).__class__ = _showing(type(child), torch.float32, "weight")


@contextmanager
def shown_as(dtype: torch.dtype, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let whoever reads a layer's weight or bias in a `with` block get it in `dtype`."""
    kinds: list[tuple[Any, type[nn.Module]]] = [
        (layer, type(layer))
        for module in modules
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.dtype != dtype
    ]
    for layer, kind in kinds:
        layer.__class__ = _showing(kind, dtype, "weight", "bias")
    try:
        yield
    finally:
        for layer, kind in kinds:
            layer.__class__ = kind


@cache
def _showing(kind: type[nn.Module], dtype: torch.dtype, *names: str) -> type[nn.Module]:
    """Return a kind of layer of the same name that differs from `kind` in what is read off it."""

    def new(cls: type[nn.Module], *arguments: Any, **options: Any) -> nn.Module:
        # Others make layers like the one they adapt; those are to be plain ones.
        return kind(*arguments, **options) if arguments or options else object.__new__(cls)

    members = {name: property(partial(_read_as, dtype, name)) for name in names}
    return type(kind.__name__, (kind,), {**members, "__new__": new, "__module__": kind.__module__})


def _read_as(dtype: torch.dtype, name: str, layer: nn.Module) -> Tensor | None:
    if name not in layer._parameters:
        raise AttributeError(name)
    tensor = layer._parameters[name]
    return None if tensor is None else tensor.to(dtype)


def _widened_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else computable(x.dtype)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return _WidenedLinear.apply(x.to(dtype), layer._parameters["weight"], bias)  # as it is stored


class _WidenedLinear(torch.autograd.Function):
    """y = x W^T + b with a frozen W that is wider only while it is used."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.BackwardCFunction, gradient: Tensor
    ) -> tuple[Tensor, None, Tensor | None]:
        (weight,) = ctx.saved_tensors
        bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[-1] else None
        return gradient @ weight.to(gradient.dtype), None, bias
