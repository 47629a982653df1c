"""Rotations of blocks of a layer's outputs or inputs, made of skew-symmetric matrices.

The Cayley transform (I - Q)(I + Q)^-1 of a skew-symmetric Q is orthogonal (Qiu et al., arXiv:2306.07280).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sfumato.nn.device import kind_of

_EXACT = 1e-9


def turn_of(skew: Tensor, largest: float | None = None) -> Tensor:
    """Return R - I of R = (I - Q)(I + Q)^-1.

    Args:
        skew: Q, (blocks, size, size).
        largest: bounds the eigenvalues of Q; None where nothing does.
    """
    turn: Any = _Cayley.apply(skew, largest)
    return turn


def turned(turn: Tensor, values: Tensor) -> Tensor:
    """Return (..., blocks * size), each block multiplied by its matrix of `turn` (blocks, size, size)."""
    count, size, _ = turn.shape
    return torch.einsum("kij,...kj->...ki", turn, values.unflatten(-1, (count, size))).flatten(-2)


class _Cayley(torch.autograd.Function):
    """R - I of R = (I - Q)(I + Q)^-1 and skew-symmetric Q (k, n, n).

    With A = (I + Q)^-1 it is R - I = -2 Q A, which loses no digits where Q is small, as 2 A - 2 I would; and
    dR = -2 A dQ A: the backward pass needs no second inverse.
    """

    @staticmethod
    def forward(ctx: Any, skew: Tensor, largest: float | None) -> Tensor:
        eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        inverse = _inverse(eye + skew, largest)
        ctx.save_for_backward(inverse)
        return -2 * skew @ inverse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inverse,) = ctx.saved_tensors
        return -2 * inverse.mT @ gradients[0] @ inverse.mT, None


def _inverse(matrices: Tensor, largest: float | None) -> Tensor:
    """Return the inverse of each of (k, n, n), which are I + Q; `largest` bounds Q's eigenvalues.

    One by one on the CPU: MKL's batched LU raises, hangs or is silently wrong with several threads. Elsewhere
    by products alone: those who factorise make the host wait for the device.
    """
    if kind_of(matrices) != "cpu":
        return torch.linalg.inv(matrices) if largest is None else inverse_by_products(matrices, largest)
    return torch.stack([torch.linalg.inv(matrix) for matrix in matrices])


def inverse_by_products(matrices: Tensor, largest: float) -> Tensor:
    """Return the inverse of each A = I + Q of (k, n, n) by Newton's method, `X (2 I - A X)` (Schulz 1933).

    A A^T has eigenvalues between 1 and 1 + `largest`^2. So the first guess, A^T divided by the greatest, is
    off by no more than a factor below 1, and every step squares it.
    """
    greatest = 1 + largest**2
    inverse = matrices.mT / greatest
    twice = 2 * torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    for _ in range(_steps_until_exact(1 - 1 / greatest)):
        inverse = inverse @ (twice - matrices @ inverse)
    return inverse


def _steps_until_exact(error: float) -> int:
    """Return how often an error below 1 is to be squared until float32 knows no smaller one."""
    if error < _EXACT:
        return 1
    return math.ceil(math.log2(math.log(_EXACT) / math.log(error)))
