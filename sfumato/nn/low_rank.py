"""A narrow matrix product added to a large tensor, on a CPU in bfloat16.

There the sum takes as long as the product, and its fresh memory too. A product that starts from the large
tensor needs neither, and rounds once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.nn.convolution import is_matrix
from sfumato.nn.device import kind_of


def is_quicker(base: Tensor, hidden: Tensor) -> bool:
    """Return whether `add` is faster than a product and a sum; the arguments are those of `add`."""
    rows = is_matrix(base) and is_matrix(hidden) if base.dim() == 4 else base.is_contiguous()
    return rows and kind_of(base) == "cpu" and base.dtype == hidden.dtype == torch.bfloat16


def add(base: Tensor, hidden: Tensor, weight: Tensor, factor: float) -> Tensor:
    """Return `base` plus `factor` times the product of `hidden` and `weight`.

    Args:
        base: (..., O), or with channels last (B, O, H, W).
        hidden: (..., R), or with channels last (B, R, H, W).
        weight: (O, R), or (O, R, 1, 1); under autocast in any format.
    """
    if weight.dim() == 4:
        pixels, narrow = (x.permute(0, 2, 3, 1) for x in (base, hidden))
        return add(pixels, narrow, weight.flatten(1), factor).permute(0, 3, 1, 2)
    rows = torch.addmm(base.flatten(0, -2), hidden.flatten(0, -2), weight.t(), alpha=factor)
    return rows.view(base.shape)
