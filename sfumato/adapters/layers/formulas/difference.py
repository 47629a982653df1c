"""Plain differences of weights and biases, also of norms: what LyCORIS' `full` and `train_norm` write."""

from __future__ import annotations

import math

from torch import Tensor

from sfumato.adapters.layers.file_form import FileForm, Formula, Shapes, Tensors, Term
from sfumato.adapters.layers.kind import read_only
from sfumato.adapters.layers.told_shape import ToldShape

_PARAMETERS = {"diff": "weight", "diff_b": "bias", "w_norm": "weight", "b_norm": "bias"}


def _difference(name: str) -> Formula:
    def change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
        return tensors[name].float() * strength

    return change


def _shape(shapes: Shapes) -> ToldShape | None:
    size = shapes.get("diff", ())
    if len(size) < 2:  # a bias alone, a norm, or nothing that a layer has
        return None
    rows, *columns = size
    return ToldShape(rows, math.prod(columns), tuple(columns[1:]))


KIND = read_only(
    "difference",
    "difference",
    "a set of differences",
    FileForm(
        marks=tuple(_PARAMETERS),
        tensors="|".join(_PARAMETERS),
        terms=tuple(Term(owner, (name,), _difference(name)) for name, owner in _PARAMETERS.items()),
        shape=_shape,
    ),
)
