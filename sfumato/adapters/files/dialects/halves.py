"""Layers whose rows have their halves the other way round in another program.

It is the last modulation, of which one program has the scale first and another the shift.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sfumato.adapters.layers.lora import DOWN, UP

MARK = "swap_halves"
"""A tensor, 0-d: the rows of the whole change are to be exchanged, for no factor has them."""

_WITH_ROWS = {UP, "lora_up.bias", "dora_scale", "diff", "diff_b"}


def exchanged(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer's tensors, those that have the layer's rows with both halves of these exchanged."""
    if DOWN not in leaves and not leaves.keys() <= _WITH_ROWS:
        return {**leaves, MARK: torch.tensor(1)}
    return {leaf: _turned(tensor) if leaf in _WITH_ROWS else tensor for leaf, tensor in leaves.items()}


def _turned(tensor: Tensor) -> Tensor:
    """Exchange halves of the first axis; a scale of the inputs has but one entry there."""
    return torch.cat(tensor.chunk(2)[::-1]) if tensor.shape[0] > 1 else tensor
