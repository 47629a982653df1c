"""How the keys of a file fall into layers, whichever program named them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from sfumato.adapters.layers import kinds

_DOTTED_OWNERS = ("transformer.", "unet.", "text_encoder", "diffusion_model.")
_WORDS = {mark.partition("_")[0] for kind in kinds.trained() for mark in kind.files.marks}
_DOTTED = re.compile(rf"\.(?:alpha|dora|diff|{'|'.join(sorted(_WORDS))})")
"""Where the name of a tensor begins behind a layer's dotted path."""


def by_layer(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of each layer; layers of diffusers' naming have dots in their names."""
    layers: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        name = _DOTTED.split(key)[0] if key.startswith(_DOTTED_OWNERS) else key.partition(".")[0]
        layers[name].append(key)
    return layers
