"""Layers whose rows files give otherwise: fused projections apart, or the two halves the other way round.

What a part is made of stands under `part.<i>.`, where i counts the projections of the layer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfumato.adapters.layers.file_form import Tensors

PART = "part"
OF_PART = re.compile(rf"{PART}\.(?P<number>[0-9]+)\.(?P<leaf>.+)")
HALVES = "swap_halves"
"""A tensor that says no more than: exchange both halves of the finished change's rows."""


def parts_of(tensors: Tensors) -> dict[int, dict[str, Tensor]]:
    """Return the tensors of each part by its number; empty if the layer is given whole."""
    parts: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := OF_PART.fullmatch(name):
            parts[int(match["number"])][match["leaf"]] = tensor
    return dict(sorted(parts.items()))


def cut(own: Tensor, parts: Mapping[int, Tensors], splits: tuple[int, ...]) -> list[tuple[Tensors, Tensor]]:
    """Return each part's tensors with its rows; a part that the file leaves alone has no tensors.

    Raises:
        ValueError: there are more parts than the layer has, or other rows.
    """
    if not splits or max(parts) >= len(splits) or sum(splits) != own.shape[0]:
        raise ValueError(f"part {max(parts)} of a layer of {len(splits) or 1}")
    pieces = own.split(list(splits))
    return [(parts.get(number, {}), piece) for number, piece in enumerate(pieces)]


def joined(changes: Sequence[Tensor | None], pieces: Sequence[Tensor]) -> Tensor:
    """Return the change of all rows; None stands for a part that stays as it is."""
    pairs = zip(changes, pieces, strict=True)
    return torch.cat([torch.zeros_like(piece) if change is None else change for change, piece in pairs])


def exchanged(values: Tensor) -> Tensor:
    """Return rows with both halves exchanged."""
    return torch.cat(values.chunk(2)[::-1])
