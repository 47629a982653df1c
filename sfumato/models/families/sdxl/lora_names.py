"""SDXL's layers as diffusers names them, in LoRA files that do not follow published checkpoints."""

from __future__ import annotations

import re
from collections.abc import Collection

from sfumato.models.components.unet.unet_names import Topology, within_resnets

_TOPOLOGY = Topology(resnets=2, attended=(False, True, True))
_DEEP = re.compile(r"^unet_(down|mid|up)_block.*_transformer_blocks_[1-9]")
"""Transformers of several blocks, which other models with such names have not."""


def own_names(layers: Collection[str]) -> dict[str, str]:
    """Return our names of the UNet's layers, without the adapter kind's prefix, by diffusers' names.

    Nothing is returned for files of models whose own names these are.
    """
    if not any(map(_DEEP.search, layers)):
        return {}
    table = {_flat(ours): _flat(theirs) for theirs, ours in _TOPOLOGY.table().items()}
    inner = {_flat(ours): _flat(theirs) for ours, theirs in within_resnets().items()}
    found = {}
    for layer in layers:
        block = next((ours for ours in table if f"{layer}_".startswith(f"unet_{ours}_")), None)
        if block is not None:
            rest = layer.removeprefix(f"unet_{block}").removeprefix("_")
            rest = inner.get(rest, rest) if "_resnets_" in block else rest
            found[layer] = "_".join(filter(None, ("unet", table[block], rest)))
    return found


def _flat(path: str) -> str:
    return path.replace(".", "_")
