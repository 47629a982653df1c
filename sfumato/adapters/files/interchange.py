"""LoRA files between our naming and that of diffusers, which AI-toolkit and others write.

There, a layer is called `transformer.transformer_blocks.0.attn.to_q`, its halves `lora_A` and `lora_B`, and
the scale is 1; a layer that is switched off by an alpha of 0 gets an `up` of zeros. Layers that published
models fuse are several: fused, their halves are stacked, and `up` is block-diagonal; taken apart, each gets
its own ranks back, or where the ranks were shared, a copy of `down`. Text encoders and ranks are kept both
ways.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sfumato.adapters.layers.lora import DOWN, HALVES, PREFIX, UP
from sfumato.models.interface.other_names import Exchanged
from sfumato.models.registry.other_names import exchanged

Tensors = Mapping[str, Tensor]

_OWN_LEAVES = {"down": DOWN, "up": UP, "alpha": "alpha"}
_LEAVES = {
    **{leaf: half for pair in HALVES for leaf, half in zip(pair, ("down", "up"), strict=True)},
    "alpha": "alpha",
}
_PATH = "diffusion_model."
_OWNERS = ("transformer.", "text_encoder.", "text_encoder_2.", "lora_transformer_")
_FLAT_OWNERS = {"transformer": "transformer", "text_encoder": "te1", "text_encoder_2": "te2"}
"""What follows `lora_` where a file names diffusers' layers without dots, as OneTrainer does."""


def is_foreign(keys: Iterable[str]) -> bool:
    """Return whether these are the keys of a LoRA in diffusers' naming."""
    return any(key.startswith(_OWNERS) and _split(key)[1] for key in keys)


def undotted(tensors: Tensors) -> dict[str, Tensor]:
    """Return a file's tensors, those under our keys whose layers are dotted paths in published checkpoints.

    ComfyUI and programs beside it write `diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight`.
    """
    return {_undotted(key): tensor for key, tensor in tensors.items()}


def _undotted(key: str) -> str:
    if not key.startswith(_PATH):
        return key
    name, word = _split(key)
    leaf = _OWN_LEAVES.get(word)
    if leaf is None:
        name, _, leaf = key.rpartition(".")
    return f"{PREFIX}unet_{name.removeprefix(_PATH).replace('.', '_')}.{leaf}"


def to_own(tensors: Tensors) -> tuple[dict[str, Tensor], list[str]]:
    """Return a file's tensors under our keys, and the keys that are not known."""
    layers = _by_layer(tensors)
    found: dict[str, Tensor] = {}
    known: set[str] = set()
    for entry in exchanged(tensors):
        names = [name if name in layers else _flat(name) for name in entry.theirs]
        parts = [layers[name] if {"down", "up"} <= layers.get(name, {}).keys() else {} for name in names]
        if any(parts):
            known |= {name for name, part in zip(names, parts, strict=True) if part}
            found |= _own_layer(entry, parts)
    return found, [key for key in tensors if _split(key)[0] not in known]


def _flat(name: str) -> str:
    owner, _, path = name.partition(".")
    return f"{PREFIX}{_FLAT_OWNERS[owner]}_{path.replace('.', '_')}"


def to_theirs(tensors: Tensors) -> tuple[dict[str, Tensor], list[str]]:
    """Return a file's tensors under diffusers' keys, the scale folded in, and the keys that are not known."""
    layers = _by_layer(tensors)
    found: dict[str, Tensor] = {}
    known = set()
    for entry in exchanged(tensors):
        own = layers.get(PREFIX + entry.own, {})
        if {"down", "up"} <= own.keys():
            known.add(PREFIX + entry.own)
            found |= _their_layers(entry, own)
    return found, [key for key in tensors if _split(key)[0] not in known]


def parts_of(up: Tensor, widths: Sequence[int]) -> list[slice] | None:
    """Return the ranks of each of several layers that share an `up` (out, rank) without sharing ranks.

    Returns:
        None where a rank serves two of them, or where nothing tells.
    """
    rank, count = up.shape[1], len(widths)
    uses = torch.stack([rows.ne(0).any(0) for rows in up.split(list(widths))])  # (parts, rank)
    if count == 1 or bool((uses.sum(0) > 1).any()) or not bool(uses.any()):
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


def _own_layer(entry: Exchanged, parts: Sequence[Tensors]) -> dict[str, Tensor]:
    is_off = all(_scale(part) == 0 for part in parts if part)
    if not is_off:
        parts = [_at_scale_1(part) for part in parts]
    downs = [part["down"] for part in parts if part]
    columns = downs[0].shape[1]
    widths = [
        part["up"].shape[0] if part else width
        for part, width in zip(parts, entry.widths(columns), strict=True)
    ]
    rank = sum(down.shape[0] for down in downs)
    up = downs[0].new_zeros(sum(widths), rank)
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part:
            up[row : row + width, column : column + part["up"].shape[1]] = part["up"]
            column += part["up"].shape[1]
        row += width
    name = PREFIX + entry.own
    return {
        f"{name}.{DOWN}": torch.cat(downs),
        f"{name}.{UP}": up if len(parts) > 1 else parts[0]["up"],
        f"{name}.alpha": torch.tensor(0.0 if is_off else float(rank)),
    }


def _their_layers(entry: Exchanged, own: Tensors) -> dict[str, Tensor]:
    down, up = own["down"].flatten(1), own["up"].flatten(1)
    rank = down.shape[0]
    widths = [up.shape[0]]
    if len(entry.theirs) > 1:
        widths = list(entry.widths(down.shape[1]))
        widths[-1] = up.shape[0] - sum(widths[:-1])
    ranks = parts_of(up, widths) or [slice(0, rank)] * len(widths)
    of_down, of_up = _halved(_scale(own))
    down, up, found = down * of_down, up * of_up, {}
    for name, rows, own_ranks in zip(entry.theirs, up.split(widths), ranks, strict=True):
        if own_ranks.stop > own_ranks.start:
            found[f"{name}.lora_A.weight"] = down[own_ranks].contiguous()
            found[f"{name}.lora_B.weight"] = rows[:, own_ranks].contiguous()
    return found


def _halved(scale: float) -> tuple[float, float]:
    """Return two factors of a scale, near each other, one of them a power of two, which rounds nothing."""
    if scale == 0:
        return 1.0, 0.0
    of_down, of_up = scale, 1.0
    while 0 < abs(of_down) * 2 < of_up:
        of_down, of_up = of_down * 2, of_up / 2
    while abs(of_down) > of_up * 2:
        of_down, of_up = of_down / 2, of_up * 2
    return of_down, of_up


def _at_scale_1(part: Tensors) -> Tensors:
    """Return a layer with its scale in `up`; nothing of one that is missing."""
    scale = _scale(part) if part else 1.0
    return part if scale == 1 else {"down": part["down"], "up": part["up"] * scale}


def _scale(part: Tensors) -> float:
    """Return what a layer's product is multiplied by: alpha / rank, or 1 without an alpha."""
    return float(part["alpha"]) / part["down"].shape[0] if "alpha" in part else 1.0


def _by_layer(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, leaf = _split(key)
        layers[name][leaf or key] = tensor
    return layers


def _split(key: str) -> tuple[str, str]:
    """Return a key's layer, and which half it is; "" if it is none."""
    for leaf, word in _LEAVES.items():
        if key.endswith(f".{leaf}"):
            return key.removesuffix(f".{leaf}"), word
    return key, ""
