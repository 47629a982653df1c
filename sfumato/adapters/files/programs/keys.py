"""What the keys of adapter files look like to programs that know layers by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

from sfumato.adapters.files.dialects.suffixes import split

_TRANSFORMER = re.compile(
    r"double_blocks|single_blocks|joint_blocks|single_transformer_blocks"
    r"|^(base_model\.model\.)?transformer\.|^lora_transformer_|^lycoris_(single_)?transformer_blocks"
    r"|(^|[._])((img|txt|time|vector|guidance)_in[._]|final_layer[._])"
)


def is_transformer(keys: Iterable[str]) -> bool:
    """Return whether these are layers of FLUX.1 or Stable Diffusion 3, not of a UNet."""
    return any(map(_TRANSFORMER.search, keys))


def by_layer(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of each layer."""
    layers: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        layers[split(key).path].append(key)
    return layers


def acting(keys: Collection[str]) -> frozenset[str]:
    """Return the keys without those of layers that have nothing but an alpha."""
    layers = by_layer(keys).values()
    return frozenset(key for own in layers if not all(k.endswith(".alpha") for k in own) for key in own)
