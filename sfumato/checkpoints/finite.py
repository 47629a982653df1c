"""Whether tensors hold numbers, fast enough to ask it of everything that is written.

The smallest and the largest value tell: infinity is one of them, and NaN is both. Looking for these two reads
a tensor once and makes none, which is ten times as fast as asking each value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_VALUES_AT_ONCE = 1 << 20
"""Formats of 8 bits have no order in PyTorch: so many of their values are widened at a time."""


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity; integers never do."""
    return not tensor.is_floating_point() or math.isfinite(largest(tensor))


def largest(tensor: Tensor) -> float:
    """Return the largest magnitude in a tensor: NaN if there is one, 0 if it is empty."""
    if not tensor.numel():
        return 0.0
    if tensor.itemsize > 1:
        return _largest(tensor.detach())
    parts = tensor.detach().flatten().split(_VALUES_AT_ONCE)
    return max((_largest(part.bfloat16()) for part in parts), key=lambda size: (math.isnan(size), size))


def _largest(tensor: Tensor) -> float:
    low, high = torch.aminmax(tensor)
    return float(torch.maximum(-low, high))
