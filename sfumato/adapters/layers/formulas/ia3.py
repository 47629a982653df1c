"""IA3: a learned factor of each output, or input, of a layer (Liu et al., arXiv:2205.05638).

W' = W (1 + w), along rows or, where `on_input` is 1, along columns.
"""

from __future__ import annotations

from torch import Tensor

from sfumato.adapters.layers.file_form import FileForm, Tensors, Term
from sfumato.adapters.layers.kind import read_only

_FACTORS, _SIDE = "weight", "on_input"


def _change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
    axis = int(tensors[_SIDE])
    sides = [-1 if dim == axis else 1 for dim in range(own.dim())]
    return own * (tensors[_FACTORS].float().reshape(sides) * strength)


KIND = read_only(
    "ia3",
    "IA3",
    "an IA3 adapter",
    FileForm(
        marks=(_SIDE,),
        tensors=f"{_FACTORS}|{_SIDE}",
        needs_weight=True,
        terms=(Term("weight", (_SIDE,), _change, (_FACTORS,)),),
    ),
)
