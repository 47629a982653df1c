"""Stochastic rounding: small changes reach 16-bit weights on average instead of being lost.

Rounding to the nearest bfloat16 drops every change below 1/512 of a weight, and at the usual rates that is
most of them. Rounding up or down with the probability that keeps the mean loses nothing in the long run
(Gupta et al. 2015, arXiv:1502.02551).
"""

from __future__ import annotations

import torch
from torch import Tensor

_DROPPED_BITS = 16


def round_stochastically_(target: Tensor, source: Tensor, rng: torch.Generator) -> None:
    """Write float32 `source` into bfloat16 `target`, up or down at random; the mean is the source's.

    A bfloat16 is the upper half of a float32. Adding a uniform number below 2^16 to the bits carries into the
    upper half with the probability that the lower half stands for; cutting the lower half off does the rest.

    Args:
        rng: on the device of both.
    """
    if target.dtype is not torch.bfloat16 or source.dtype is not torch.float32:
        raise ValueError(f"cannot round {source.dtype} to {target.dtype}; it is float32 to bfloat16 alone")
    limit = 1 << _DROPPED_BITS
    bits = torch.randint(limit, source.shape, dtype=torch.int32, device=source.device, generator=rng)
    bits.masked_fill_(~source.isfinite(), 0)  # a carry would make numbers of what is none
    bits.add_(source.contiguous().view(torch.int32)).bitwise_and_(-limit)
    target.copy_(bits.view(torch.float32))
