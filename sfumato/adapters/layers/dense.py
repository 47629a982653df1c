"""Adapters that act through the whole change of a weight: what such kinds have in common.

The change is as large as the weight itself. It is made anew in the backward pass, so that between the passes
no layer keeps more than its input, and its factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sfumato.adapters.layers.layer import Dropouts, Strength, per_sample
from sfumato.nn.convolution import is_matrix, is_pointwise, pointwise

PREFIX = "lora_"
"""What files put before a layer's name: the same as for LoRA, as LyCORIS has it."""


def changed(
    layer: nn.Module,
    module: nn.Module,
    inputs: Tensor,
    output: Tensor,
    weight: Callable[[], Tensor],
    strength: Strength,
    dropouts: Dropouts,
) -> Tensor:
    """Return the output of `module` with the change of its weight at work; see `AdapterLayer.change`.

    Args:
        layer: the adapter; its mode says whether to leave things out.
        module: the Linear or Conv2d that is adapted.
        weight: makes the change at strength 1, shaped like the module's weight, on the adapter's device.
    """
    if isinstance(strength, float | int) and strength == 0:
        return output
    # Drawn on the CPU: the decision must not make the device wait.
    if layer.training and dropouts.module and torch.rand(()).item() < dropouts.module:
        return output
    if not torch.is_autocast_enabled(inputs.device.type):
        inputs = inputs.to(next(layer.parameters()).dtype)
    kept = _kept_outputs(layer, output, module, dropouts.rank)

    def run(x: Tensor) -> Tensor:
        return apply(module, x, weight())

    own = checkpoint(run, inputs, use_reentrant=False, preserve_rng_state=False)
    own = own if kept is None else own * kept
    return output + (own * per_sample(strength, own)).to(output.dtype)


def apply(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """Return what `module` would make of `inputs` with this weight and without bias."""
    if isinstance(module, nn.Conv2d):
        if is_pointwise(module) and is_matrix(inputs):
            return pointwise(inputs, weight)
        padding = cast("tuple[int, int] | str", module.padding)
        return F.conv2d(inputs, weight, None, module.stride, padding, module.dilation)
    return F.linear(inputs, weight)


def shape_of(module: nn.Module) -> tuple[int, ...]:
    """Return the shape of a weight that can be adapted: (out, in) or (out, in, height, width).

    Raises:
        ValueError: the layer is neither a Linear nor an ungrouped Conv2d.
    """
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        return tuple(module.get_parameter("weight").shape)
    raise ValueError(f"adapters take Linear and ungrouped Conv2d layers, not {module}")


def tucker(core: Tensor, out_side: Tensor, in_side: Tensor) -> Tensor:
    """Return a convolution's weight (out, in, h, w) from its Tucker factors (arXiv:2108.06098, eq. 4).

    Args:
        core: (rank, rank, h, w).
        out_side: (rank, out).
        in_side: (rank, in).
    """
    return torch.einsum("ijhw,io,jn->onhw", core, out_side, in_side)


def register(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give a layer parameters of these names and shapes, without numbers yet."""
    for name, shape in shapes.items():
        layer.register_parameter(name, nn.Parameter(torch.empty(shape)))


def _kept_outputs(layer: nn.Module, output: Tensor, module: nn.Module, share: float | None) -> Tensor | None:
    """Return 0 for each output to leave out, and for the rest what keeps the mean; None for no dropout."""
    if not layer.training or not share:
        return None
    is_conv = isinstance(module, nn.Conv2d)
    width = output.shape[1 if is_conv else -1]
    kept = (torch.rand(width, device=output.device) >= share) / (1 - share)
    return kept.reshape(-1, 1, 1) if is_conv else kept
