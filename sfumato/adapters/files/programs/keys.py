"""What the keys of adapter files look like to programs that know layers by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

_TRANSFORMER = re.compile(
    r"double_blocks|single_blocks|joint_blocks|single_transformer_blocks"
    r"|^(base_model\.model\.)?transformer\.|^lora_transformer_|^lycoris_(single_)?transformer_blocks"
    r"|(^|[._])((img|txt|time|vector|guidance)_in[._]|final_layer[._])"
)
_LEAF = re.compile(
    r"(?<=[._])(alpha$|dora_scale$|lora[._A-Z]|lora_|hada_|lokr_|oft_(blocks|R|diag)|rescale$|diff(_b)?$|[wb]_norm$"
    r"|[ab][12]\.weight$|bm\.weight$|weight$|on_input$|set_weight$|reshape_weight$|magnitude$)"
)


def is_transformer(keys: Iterable[str]) -> bool:
    """Return whether these are layers of FLUX.1 or Stable Diffusion 3, not of a UNet."""
    return any(map(_TRANSFORMER.search, keys))


def layer_of(key: str) -> str:
    """Return the layer that a tensor belongs to, as its key has it, with the dot or stroke at its end.

    A key that no adapter has is a layer of its own.
    """
    owner = re.match(r"[a-z]+(_unet|_te\d?|_transformer)?_", key)
    start = owner.end() if owner else 0
    found = _LEAF.search(key, start)
    return key[: found.start()] if found else key


def by_layer(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of each layer."""
    layers: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        layers[layer_of(key)].append(key)
    return layers


def acting(keys: Collection[str]) -> frozenset[str]:
    """Return the keys without those of layers that have nothing but an alpha."""
    layers = by_layer(keys).values()
    return frozenset(key for own in layers if not all(k.endswith(".alpha") for k in own) for key in own)
