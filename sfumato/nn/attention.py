"""Scaled dot-product attention, the one place that chooses how it is computed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sfumato.nn import cpu_attention


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v with the heads joined (Vaswani et al. 2017, eq. 1).

    Args:
        query: (B, H, L, D).
        key, value: (B, H, S, D).
        mask: bool, broadcastable to (B, H, L, S); True where a key may be seen.

    Returns:
        (B, L, H * D).
    """
    if mask is None and cpu_attention.is_quicker(query, key, value):
        attended = cpu_attention.attend(query, key, value)
    else:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


def visible_keys(mask: Tensor) -> Tensor:
    """Turn (B, S), nonzero for a real token, into the (B, 1, 1, S) bool mask that `attend` takes.

    Only keys are hidden: every query, one of a padding token too, sees the same keys. No row is ever empty
    as long as one key of the sequence is real, so no softmax divides by zero.
    """
    return mask.bool()[:, None, None, :]
