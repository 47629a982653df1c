"""OFT of a layer's inputs, as PEFT and OneTrainer write it (version 2, Qiu et al., arXiv:2506.19847).

A file holds each block's skew-symmetric Q as its upper triangle, row by row; one row serves all blocks. Both
programs make R of it by five terms of a series, I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4, unless they are told to
invert: so does this. The weight becomes W R^T, with the kernel of a convolution among the inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.adapters.layers.file_form import FileForm, Tensors, Term
from sfumato.adapters.layers.kind import read_only

_TRIANGLES, _SCALED = "oft_R.weight", "oft_R.scaled_oft"


def _change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
    triangles = tensors[_TRIANGLES].float()
    size = (1 + math.isqrt(1 + 8 * triangles.shape[1])) // 2
    if _SCALED in tensors:
        triangles = triangles / (2 * math.sqrt(size - 1))
    turn = _turn(_skew(triangles, size))
    pieces = own.flatten(1).unflatten(1, (-1, size)).transpose(0, 1)  # (blocks, out, size)
    return (pieces @ turn.mT).transpose(0, 1).flatten(1) * strength


def _skew(triangles: Tensor, size: int) -> Tensor:
    """Return Q (blocks, size, size) of upper triangles (blocks, size (size - 1) / 2)."""
    skew = triangles.new_zeros(len(triangles), size, size)
    upper = torch.triu_indices(size, size, 1, device=triangles.device)
    skew[:, upper[0], upper[1]] = triangles
    return skew - skew.mT


def _turn(skew: Tensor) -> Tensor:
    """Return R - I by the series."""
    square = skew @ skew
    cube = square @ skew
    return 2 * (skew + square + cube) + cube @ skew


KIND = read_only(
    "input_oft",
    "OFT of inputs",
    "an OFT network of inputs",
    FileForm(
        marks=(_TRIANGLES,),
        tensors=r"oft_R\.(weight|scaled_oft)",
        is_off_at_0=False,
        needs_weight=True,
        terms=(Term("weight", (_TRIANGLES,), _change, (_SCALED,)),),
    ),
)
