"""Attention in bfloat16 on a CPU, as matrix products: its scores are made for a few heads at a time.

PyTorch's own kernel there cuts the scores into small tiles, and pays for it: with 1024 tokens it takes up to
twice as long as whole products do, forward and backward. Where there are many scores, they are made anew for
the backward pass, as there, so that memory grows with the tokens and not with their square.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable

from sfumato.nn.device import kind_of

LEAST_SCORES = 64 * 64
"""Of a head. With fewer, starting the products takes longer than they do."""
MOST_SCORES = 4096 * 4096
"""Of a head. Two such buffers are held, which is 64 MiB."""
SCORES_AT_ONCE = 2**20
"""Of as many heads as fit: what fits a processor's cache is read again soon enough."""
KEPT_SCORES = 2**23
"""Of a layer, 16 MiB. So many are kept for the backward pass: a softmax takes longer than a product."""


def is_quicker(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether `attend` is faster than PyTorch's kernel; each is (B, H, tokens, D)."""
    return (
        kind_of(query) == "cpu"
        and query.dtype == key.dtype == value.dtype == torch.bfloat16
        and LEAST_SCORES <= query.shape[2] * key.shape[2] <= MOST_SCORES
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, eq. 1), shaped like `query`.

    Args:
        query: (B, H, L, D).
        key, value: (B, H, S, D).
    """
    return _Attention.apply(query, key, value)


class _Attention(torch.autograd.Function):
    """Scores, their softmax and the weighted sum; backward, four products more."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries, keys, values = (x.flatten(0, 1) for x in (query, key, value))
        shape = (*queries.shape[:2], keys.shape[1])
        is_kept = any(ctx.needs_input_grad) and math.prod(shape) <= KEPT_SCORES  # type: ignore[attr-defined]
        kept = queries.new_empty(shape) if is_kept else None
        ctx.save_for_backward(query, key, value, kept)  # type: ignore[arg-type]
        attended = torch.empty_like(queries)
        for heads, scores, room in _pieces(queries, keys):
            shares = room if kept is None else kept[heads]
            _share(queries[heads], keys[heads], scores, shares)
            torch.bmm(shares, values[heads], out=attended[heads])
        return attended.view_as(query)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: BackwardCFunction, gradient: Tensor
    ) -> tuple[Tensor, ...]:
        *saved, kept = ctx.saved_tensors  # once: a checkpointed block hands them out no second time
        queries, keys, values = inputs = [x.flatten(0, 1) for x in saved]
        for_query, for_key, for_value = gradients = [torch.empty_like(x) for x in inputs]
        gradient = gradient.flatten(0, 1)
        for heads, change, room in _pieces(queries, keys):
            shares = _share(queries[heads], keys[heads], change, room) if kept is None else kept[heads]
            torch.bmm(shares.mT, gradient[heads], out=for_value[heads])
            torch.bmm(gradient[heads], values[heads].mT, out=change)
            torch.ops.aten._softmax_backward_data.out(change, shares, -1, shares.dtype, grad_input=change)
            torch.bmm(change, keys[heads], out=for_query[heads])
            torch.bmm(change.mT, queries[heads], out=for_key[heads])
        for_query *= _scale(queries)
        for_key *= _scale(queries)
        return tuple(mine.view_as(x) for mine, x in zip(gradients, saved, strict=True))


def _pieces(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a few heads and two buffers (heads, L, S) to use freely.

    Buffers are used again for the next heads: fresh memory would cost as much as a product does.
    """
    count, length, width = *queries.shape[:2], keys.shape[1]
    at_once = min(count, max(1, SCORES_AT_ONCE // (length * width)))
    first, second = queries.new_empty(2, at_once, length, width)
    for start in range(0, count, at_once):
        used = min(at_once, count - start)
        yield slice(start, start + used), first[:used], second[:used]


def _share(query: Tensor, key: Tensor, scores: Tensor, shares: Tensor) -> Tensor:
    """Write the scores of a few heads into `scores` and their softmax, which is returned, into `shares`."""
    scores.baddbmm_(query, key.mT, beta=0, alpha=_scale(query))
    return torch.softmax(scores, -1, out=shares)


def _scale(queries: Tensor) -> float:
    return queries.shape[-1] ** -0.5
