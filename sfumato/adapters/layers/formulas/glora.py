"""GLoRA: a change with a part that follows the weight, `(W a1 a2 + b1 b2) alpha / rank` (arXiv:2306.07967).

Older files have the factors of both products the other way round; shapes tell them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.adapters.layers import dense
from sfumato.adapters.layers.file_form import FileForm, Tensors, Term
from sfumato.adapters.layers.kind import read_only

_NAMES = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
_CORE = "bm.weight"


def _change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
    a1, a2, b1, b2 = (tensors[name].float().flatten(1) for name in _NAMES)
    if not _is_new(a1, a2, b1, b2):
        a1, a2, b1, b2 = a2, a1, b2, b1
    added = dense.tucker(tensors[_CORE].float(), b1.T, b2) if _CORE in tensors else b1 @ b2
    followed = torch.einsum("oi...,ij->oj...", own, a1 @ a2)
    scale = float(tensors["alpha"]) / a2.shape[0] if "alpha" in tensors else 1.0
    return (followed + added.reshape(own.shape)) * (scale * strength)


def _is_new(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> bool:
    """Return whether the factors are a1 (in, rank), a2 (rank, in), b1 (out, rank) and b2 (rank, in ...)."""
    return a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0]


KIND = read_only(
    "glora",
    "GLoRA",
    "a GLoRA",
    FileForm(
        marks=(_NAMES[0],),
        tensors=r"[ab][12]\.weight|bm\.weight",
        together=(_NAMES,),
        ranks=("a2",),
        needs_weight=True,
        terms=(Term("weight", (_NAMES[0],), _change, (*_NAMES, _CORE)),),
    ),
)
