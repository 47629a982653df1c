"""LoRAs of ours written in diffusers' naming, which AI-toolkit and others use.

There, a layer is called `transformer.transformer_blocks.0.attn.to_q`, its halves `lora_A` and `lora_B`, and
the scale is 1; a layer that is switched off by an alpha of 0 gets an `up` of zeros. Layers that published
models fuse are taken apart: each gets its own ranks back, or where the ranks were shared, a copy of `down`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfumato.adapters.files.dialects import halves
from sfumato.adapters.files.dialects.fusing import Leaves, scale_of
from sfumato.adapters.layers.lora import DOWN, PREFIX, UP
from sfumato.models.components import text_layers
from sfumato.models.interface.layer_names import FamilyNames, LayerNames

_LORA = {DOWN, UP, "alpha"}
_SCALE, _MAGNITUDE = "dora_scale", "lora_magnitude_vector"


def in_diffusers_names(
    layers: Mapping[str, Leaves], family: FamilyNames
) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors under diffusers' keys, the scale folded in, and the layers that have no such form.

    Args:
        layers: by our names, as `read_adapter` returns them.
        family: the names of the model's layers.
    """
    table = {PREFIX + layer.own: layer for layer in family.layers}
    found: dict[str, Tensor] = {}
    rest = []
    for name, leaves in layers.items():
        if leaves.keys() - {_SCALE} != _LORA or not _has_rows(leaves):
            rest.append(name)
        elif layer := table.get(name):
            prefixed = [f"{family.denoiser}.{path}" for path in layer.diffusers]
            found |= _taken_apart(layer, prefixed, halves.exchanged(leaves) if layer.swaps_halves else leaves)
        elif path := _encoder_path(name, family):
            found |= _halves(path, leaves[DOWN], leaves[UP], leaves.get(_SCALE), scale_of(leaves))
        else:
            rest.append(name)
    return found, rest


def _encoder_path(name: str, family: FamilyNames) -> str | None:
    """Return diffusers' path of a text encoder's layer; None if it is none."""
    owner, _, path = name.removeprefix(PREFIX).partition("_")
    folder = next((encoder.diffusers for encoder in family.text_encoders if encoder.own == owner), None)
    dotted = text_layers.dotted(path)
    return f"{folder}.{dotted}" if folder and dotted else None


def _has_rows(leaves: Leaves) -> bool:
    """Return whether a DoRA's scale, if there is one, has a number for each output, as diffusers has it."""
    magnitude, rows = leaves.get(_SCALE), leaves[UP].shape[0]
    return magnitude is None or magnitude.shape == (rows, *[1] * (magnitude.dim() - 1))


def _taken_apart(layer: LayerNames, names: Sequence[str], leaves: Leaves) -> dict[str, Tensor]:
    down, up, magnitude, scale = leaves[DOWN], leaves[UP], leaves.get(_SCALE), scale_of(leaves)
    if len(names) == 1:
        return _halves(names[0], down, up, magnitude, scale)
    widths = list(layer.widths(down.shape[1]))
    widths[-1] = up.shape[0] - sum(widths[:-1])
    ranks = parts_of(up, widths) or [slice(0, down.shape[0])] * len(widths)
    found: dict[str, Tensor] = {}
    magnitudes = magnitude.split(widths) if magnitude is not None else [None] * len(widths)
    for name, rows, own, own_ranks in zip(names, up.split(widths), magnitudes, ranks, strict=True):
        if own_ranks.stop > own_ranks.start or own is not None:
            found |= _halves(name, down[own_ranks], rows[:, own_ranks], own, scale)
    return found


def _halves(name: str, down: Tensor, up: Tensor, magnitude: Tensor | None, scale: float) -> dict[str, Tensor]:
    of_down, of_up = _shared(scale)
    found = {
        f"{name}.lora_A.weight": (down * of_down).contiguous(),
        f"{name}.lora_B.weight": (up * of_up).contiguous(),
    }
    if magnitude is not None:
        rows = magnitude.flatten()
        found[f"{name}.{_MAGNITUDE}"] = rows if down.dim() == 2 else rows[None, :, None, None]
    return found


def parts_of(up: Tensor, widths: Sequence[int]) -> list[slice] | None:
    """Return the ranks of each of several layers that share an `up` (out, rank) without sharing ranks.

    Returns:
        None where a rank serves two of them, or where nothing tells.
    """
    rank, count = up.shape[1], len(widths)
    uses = torch.stack([rows.ne(0).any(0) for rows in up.split(list(widths))])  # (parts, rank)
    if bool((uses.sum(0) > 1).any()) or not bool(uses.any()):
        return None
    if rank % count == 0:
        size = rank // count
        even = torch.arange(rank) // size
        if not bool((uses & (even != torch.arange(count)[:, None])).any()):
            return [slice(i * size, (i + 1) * size) for i in range(count)]
    used = uses.any(0).nonzero().flatten().tolist()
    owners = [int(uses[:, column].nonzero()[0]) for column in used]
    if owners != sorted(owners):
        return None
    ends = [
        max((c + 1 for c, owner in zip(used, owners, strict=True) if owner <= i), default=0)
        for i in range(count)
    ]
    ends[-1] = rank
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _shared(scale: float) -> tuple[float, float]:
    """Return two factors of a scale, near each other, one of them a power of two, which rounds nothing."""
    if scale == 0:
        return 1.0, 0.0
    of_down, of_up = scale, 1.0
    while 0 < abs(of_down) * 2 < of_up:
        of_down, of_up = of_down * 2, of_up / 2
    while abs(of_down) > of_up * 2:
        of_down, of_up = of_down / 2, of_up * 2
    return of_down, of_up
