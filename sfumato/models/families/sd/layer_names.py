"""What programs call the layers of Stable Diffusion 1 and 2 in adapter files."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from sfumato.models.components.unet.unet_layers import CONTEXT, layers
from sfumato.models.components.unet.unet_names import Topology
from sfumato.models.interface.layer_names import FamilyNames, TextEncoderNames

_TOPOLOGY = Topology(resnets=2, attended=(True, True, True, False))
_CONTEXT_WIDTHS = (768, 1024)
"""Of version 1 and 2."""


@cache
def _names() -> FamilyNames:
    table = tuple(layers(_TOPOLOGY, 1, has_published_names=False))
    return FamilyNames(
        "sd",
        table,
        (TextEncoderNames("te", "text_encoder", "clip"),),
        told_by=CONTEXT,
        inputs=_CONTEXT_WIDTHS,
    )


def names(paths: Collection[str]) -> FamilyNames:
    """Return the names of all layers; see `registry/layer_names.py`."""
    return _names()
