"""Several layers of one program that are one, fused, in published checkpoints.

LoRAs are joined: their halves are stacked, and `up` is block-diagonal. Other kinds, and LoRAs with more than
two halves, have no such form: their tensors are handed on as `part.0.hada_w1_a`, with the number of the part
among the fused ones, and change its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.adapters.files.dialects import halves
from sfumato.adapters.layers.lora import DOWN, UP
from sfumato.errors import UserError
from sfumato.models.interface.layer_names import LayerNames, Place
from sfumato.nn.precision import is_storage_only

Leaves = Mapping[str, Tensor]

PART = "part."
"""What stands before the names of tensors that change some rows of a layer alone, with the part's number."""

_PLAIN = {DOWN, UP, "alpha"}


@dataclass(frozen=True)
class Piece:
    """What a file holds of a layer under one name.

    Attributes:
        name: the file's.
        place: what of the layer it is; None of a layer that is in no table.
    """

    name: str
    leaves: Leaves
    place: Place | None = None

    @property
    def numbers(self) -> range:
        """Which of the fused layers it is."""
        return self.place.parts if self.place else range(1)


def joined(path: Path, pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """Return the tensors of one layer of ours.

    Raises:
        UserError: the file holds something twice, or nothing that could be joined.
    """
    first, place = pieces[0], pieces[0].place
    _require_apart(path, pieces)
    if place is None or place.is_whole:
        swaps = place is not None and place.swaps_halves
        return halves.exchanged(first.leaves) if swaps else dict(first.leaves)
    ordered = sorted(pieces, key=lambda piece: piece.numbers.start)
    if all(piece.leaves.keys() == _PLAIN and piece.leaves[UP].dim() == 2 for piece in ordered):
        return _fused(place.layer, ordered)
    if wide := next((piece for piece in ordered if len(piece.numbers) > 1), None):
        raise UserError(
            f"{path}: {wide.name} holds {', '.join(sorted(wide.leaves))}; only a LoRA is known there"
        )
    return {
        f"{PART}{piece.numbers.start}.{leaf}": tensor
        for piece in ordered
        for leaf, tensor in piece.leaves.items()
    }


def _require_apart(path: Path, pieces: Sequence[Piece]) -> None:
    seen: dict[int, str] = {}
    for piece in pieces:
        for number in piece.numbers:
            if number in seen:
                raise UserError(
                    f"{path} holds one layer twice, as {seen[number]} and as {piece.name}; use another file"
                )
            seen[number] = piece.name


def _fused(layer: LayerNames, pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """Return one LoRA of several; its scale is theirs if they agree, and is otherwise folded into `up`."""
    scales = [scale_of(piece.leaves) for piece in pieces]
    agree = len(set(scales)) == 1
    downs = [_computable(piece.leaves[DOWN]) for piece in pieces]
    ups = [_computable(piece.leaves[UP]) for piece in pieces]
    if not agree:
        ups = [up if scale == 1 else up * scale for up, scale in zip(ups, scales, strict=True)]
    rank = sum(down.shape[0] for down in downs)
    return {
        DOWN: torch.cat(downs),
        UP: _block_diagonal(layer, [piece.numbers for piece in pieces], ups, downs[0].shape[1]),
        "alpha": torch.tensor(rank * (scales[0] if agree else 1.0)),
    }


def _block_diagonal(
    layer: LayerNames, places: Sequence[range], ups: Sequence[Tensor], columns: int
) -> Tensor:
    """Return `up` of the fused layer (out, sum of ranks); layers that a file lacks have rows of zeros."""
    widths = list(layer.widths(columns))
    for numbers, up in zip(places, ups, strict=True):
        if len(numbers) == 1:
            widths[numbers.start] = up.shape[0]
    whole = ups[0].new_zeros(sum(widths), sum(up.shape[1] for up in ups))
    column = 0
    for numbers, up in zip(places, ups, strict=True):
        row = sum(widths[: numbers.start])
        whole[row : row + up.shape[0], column : column + up.shape[1]] = up
        column += up.shape[1]
    return whole


def scale_of(leaves: Leaves) -> float:
    """Return what a LoRA's product is multiplied by: alpha / rank."""
    return float(leaves["alpha"]) / leaves[DOWN].shape[0]


def _computable(tensor: Tensor) -> Tensor:
    return tensor.float() if is_storage_only(tensor.dtype) else tensor
