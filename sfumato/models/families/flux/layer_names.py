"""What programs call the layers of FLUX.1 in adapter files.

Names of diffusers and of published files come from the table of `keys.py`. The trainers of x-flux name layers
by attention processors, and have no LoRA for the feed-forward rows that single blocks fuse with attention.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache

from sfumato.models.components.dit.diffusers_source import count_blocks
from sfumato.models.families.flux.keys import from_diffusers
from sfumato.models.interface.layer_names import FamilyNames, LayerNames, TextEncoderNames, flat

_MLP_RATIO = 4
"""How many times wider a feed-forward layer is than the model, in all published models."""
_DEPTHS = 19, 38
"""Double and single blocks of published models."""
_PROCESSORS = {
    "img_attn.qkv": ("qkv_lora1", range(3)),
    "txt_attn.qkv": ("qkv_lora2", range(3)),
    "img_attn.proj": ("proj_lora1", range(1)),
    "txt_attn.proj": ("proj_lora2", range(1)),
    "linear1": ("qkv_lora", range(3)),
    "linear2": ("proj_lora", range(1)),
}
_ENCODERS = TextEncoderNames("te1", "text_encoder", "clip"), TextEncoderNames("te3", "text_encoder_2", "t5")


def names(paths: Collection[str]) -> FamilyNames:
    """Return the names of all layers, as deep as these paths go; see `registry/layer_names.py`."""
    double = count_blocks(paths, "(?:transformer|double)_blocks")
    single = count_blocks(paths, "single_(?:transformer_)?blocks")
    return _names(max(double, _DEPTHS[0]), max(single, _DEPTHS[1]))


@cache
def _names(depth: int, single: int) -> FamilyNames:
    return FamilyNames("flux", tuple(_layers(depth, single)), _ENCODERS, "transformer")


def _layers(depth: int, single: int) -> Iterator[LayerNames]:
    for tensor, source in from_diffusers(depth, single, guidance=True).items():
        path, _, leaf = tensor.rpartition(".")
        if leaf in ("weight", "scale"):
            diffusers = tuple(name.removesuffix(".weight") for name in source.names)
            ratio = _MLP_RATIO if path.endswith(".linear1") else 1
            own = f"unet_{flat(path)}"
            yield LayerNames(own, path, diffusers, tuple(_processors(path)), ratio, source.swaps_halves)


def _processors(path: str) -> Iterator[tuple[str, range]]:
    """Yield what x-flux calls a layer of a block."""
    block, layer = ".".join(path.split(".")[:2]), ".".join(path.split(".")[2:])
    if layer in _PROCESSORS:
        name, parts = _PROCESSORS[layer]
        yield f"{block}.processor.{name}", parts
