"""Tensors that take a weight's place, whatever the strength, as some files do with norms of queries."""

from __future__ import annotations

from torch import Tensor

from sfumato.adapters.layers.file_form import FileForm, Tensors, Term
from sfumato.adapters.layers.kind import read_only

_SET = "set_weight"


def _change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
    return tensors[_SET].float().reshape(own.shape) - own


KIND = read_only(
    "replacement",
    "replacement",
    "a set of replaced weights",
    FileForm(marks=(_SET,), tensors=_SET, needs_weight=True, terms=(Term("weight", (_SET,), _change),)),
)
