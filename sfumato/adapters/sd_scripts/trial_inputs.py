"""What to run a layer on, to see whether others' code can."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

_BATCH, _TOKENS, _SIDE = 2, 3, 8


def kind_of(layer: nn.Module) -> Hashable:
    """Return what tells kinds of layers apart: whatever works on one works on all of its kind."""
    kernel = [str(getattr(layer, name, None)) for name in ("kernel_size", "stride", "padding")]
    lacking = [name for name, tensor in layer._parameters.items() if tensor is None]
    return (type(layer), *kernel, *lacking)


def input_for(layer: nn.Module, device: torch.device) -> Tensor | None:
    """Return an input that a layer takes, for nothing but its shape; None for a layer of an unknown kind."""
    if isinstance(layer, nn.Linear):
        return torch.zeros(_BATCH, _TOKENS, layer.in_features, device=device)
    if isinstance(layer, nn.LayerNorm):
        return torch.zeros(_BATCH, _TOKENS, *layer.normalized_shape, device=device)
    if isinstance(layer, nn.Conv2d):
        return torch.zeros(_BATCH, layer.in_channels, _SIDE, _SIDE, device=device)
    if isinstance(layer, nn.GroupNorm):
        return torch.zeros(_BATCH, layer.num_channels, _SIDE, _SIDE, device=device)
    return None
