"""What all tensors of a layer make of one of its parameters, whichever kinds of adapters they belong to.

The changes of several kinds add up. Some tensors say how: DoRA's norms stand around the sum, a factor
multiplies it, rows may be given in parts or with their halves exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from sfumato.adapters.layers import kinds
from sfumato.adapters.layers.file_form import FileForm, Tensors, Term
from sfumato.adapters.layers.formulas import decomposition, rows
from sfumato.adapters.layers.kind import read_only

FACTOR = "scalar"
"""LyCORIS' learned factor of the whole change."""
SHAPE = "reshape_weight"
"""The shape that the weight has to have; whoever makes the layer sees to it."""


def change_of(
    tensors: Tensors, parameter: str, own: Tensor, strength: float, splits: tuple[int, ...] = ()
) -> Tensor:
    """Return the change of a parameter, in its shape.

    Args:
        tensors: of one layer, by their names in files; those of one number on the CPU.
        parameter: one of `parameters_of(tensors)`.
        own: what the layer has there, in float32.
        splits: rows of each of the projections that are fused in the layer.
    """
    if rows.HALVES in tensors:
        rest = {name: tensor for name, tensor in tensors.items() if name != rows.HALVES}
        change = change_of(rest, parameter, rows.exchanged(own), strength, splits)
        return rows.exchanged(change)
    if parts := rows.parts_of(tensors):
        pieces = rows.cut(own, parts, splits)
        changes = [
            change_of(part, parameter, piece, strength) if parameter in parameters_of(part) else None
            for part, piece in pieces
        ]
        return rows.joined(changes, [piece for _, piece in pieces])
    if decomposition.NORMS in tensors and parameter == "weight":
        whole = own + _sum(tensors, parameter, own, 1.0)
        return (decomposition.decomposed(whole, tensors[decomposition.NORMS]) - own) * strength
    return _sum(tensors, parameter, own, strength)


def parameters_of(tensors: Tensors) -> tuple[str, ...]:
    """Return which parameters a layer's tensors change: `weight`, `bias` or both."""
    sets = [*rows.parts_of(tensors).values(), tensors]
    found = {term.parameter for each in sets for term in _terms(each)}
    return tuple(sorted(found, reverse=True))


def unknown(tensors: Tensors) -> list[str]:
    """Return the names of tensors of which no formula makes use."""
    parts = rows.parts_of(tensors)
    known = {"alpha", FACTOR, decomposition.NORMS, rows.HALVES, SHAPE}
    known |= {name for term in _terms(tensors) for name in (*term.marks, *term.takes)}
    inner = [f"{rows.PART}.{i}.{name}" for i, part in parts.items() for name in unknown(part)]
    return inner + [name for name in tensors if name not in known and not rows.OF_PART.fullmatch(name)]


def _sum(tensors: Tensors, parameter: str, own: Tensor, strength: float) -> Tensor:
    factor = strength * float(tensors.get(FACTOR, 1.0))
    terms = [term for term in _terms(tensors) if term.parameter == parameter]
    changes = [term.change(tensors, own, factor).reshape(own.shape) for term in terms]
    return sum(changes[1:], changes[0])


def _terms(tensors: Tensors) -> Iterator[Term]:
    for kind in kinds.in_files():
        for term in kind.files.terms:
            if any(mark in tensors for mark in term.marks):
                yield term


KIND = read_only(
    "composition",
    "composed adapter",
    "a composed adapter",
    FileForm(
        marks=(rows.PART, rows.HALVES, FACTOR, SHAPE),
        tensors=rf"{rows.PART}\..*|{rows.HALVES}",
        needs_weight=True,
    ),
)
