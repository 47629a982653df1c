"""What programs call the layers of SDXL in adapter files."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from sfumato.models.components.unet.unet_layers import CONTEXT, layers
from sfumato.models.components.unet.unet_names import Topology
from sfumato.models.interface.layer_names import FamilyNames, TextEncoderNames

_TOPOLOGY = Topology(resnets=2, attended=(False, True, True))
_DEPTH = 10
_CONTEXT_WIDTHS = (2048,)


@cache
def _names() -> FamilyNames:
    encoders = (
        TextEncoderNames("te1", "text_encoder", "clip"),
        TextEncoderNames("te2", "text_encoder_2", "clip"),
    )
    table = tuple(layers(_TOPOLOGY, _DEPTH, has_published_names=True))
    return FamilyNames("sdxl", table, encoders, told_by=CONTEXT, inputs=_CONTEXT_WIDTHS)


def names(paths: Collection[str]) -> FamilyNames:
    """Return the names of all layers; see `registry/layer_names.py`."""
    return _names()
