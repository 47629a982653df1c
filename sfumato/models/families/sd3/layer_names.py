"""What programs call the layers of Stable Diffusion 3 in adapter files."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache

from sfumato.models.components.dit.diffusers_source import count_blocks
from sfumato.models.families.sd3.keys import from_diffusers
from sfumato.models.interface.layer_names import FamilyNames, LayerNames, TextEncoderNames, flat

_DEPTHS = 24, 38
"""Blocks of the medium models and of the large one."""
_BLOCKS = "(?:joint|transformer)_blocks"
_IMAGE_PROJECTION = {"x_block_attn_proj", "attn_to_out_0"}
_TEXT_PROJECTION = {"context_block_attn_proj", "attn_to_add_out"}
_WIDTHS = 1536, 2432
"""Of the medium models and of the large one."""
_TOLD_BY = ("attn_to_q", "attn_to_k", "attn_to_v", "attn_to_out_0", "attn_add_q_proj", "attn_to_add_out")
"""Layers that other families call the same."""
_ENCODERS = (
    TextEncoderNames("te1", "text_encoder", "clip"),
    TextEncoderNames("te2", "text_encoder_2", "clip"),
    TextEncoderNames("te3", "text_encoder_3", "t5"),
)


def names(paths: Collection[str]) -> FamilyNames:
    """Return the names of all layers, as deep as these paths go; see `registry/layer_names.py`."""
    found = count_blocks(paths, _BLOCKS)
    if not _ends(paths, found - 1):
        found = next((depth for depth in _DEPTHS if found <= depth), found)
    return _names(found)


def _ends(paths: Collection[str], block: int) -> bool:
    """Return whether the text stream ends in a block: its image stream has a projection, the text none."""
    own = {path.partition(f"blocks_{block}_")[2] for path in paths}
    return bool(own & _IMAGE_PROJECTION) and not own & _TEXT_PROJECTION


@cache
def _names(depth: int) -> FamilyNames:
    return FamilyNames("sd3", tuple(_layers(depth)), _ENCODERS, "transformer", _TOLD_BY, _WIDTHS)


def _layers(depth: int) -> Iterator[LayerNames]:
    sources = from_diffusers(depth, has_qk_norm=True, dual_blocks=range(depth))
    for tensor, source in sources.items():
        path, _, leaf = tensor.rpartition(".")
        if leaf == "weight":
            diffusers = tuple(name.removesuffix(".weight") for name in source.names)
            yield LayerNames(f"unet_{flat(path)}", path, diffusers, swaps_halves=source.swaps_halves)
