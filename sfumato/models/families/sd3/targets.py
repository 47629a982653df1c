"""Which layers of Stable Diffusion 3 adapters attach to, under which names and in which order.

Names and order are those of the files that sd-scripts writes.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sfumato.models.components.dit.targets import joined, linears
from sfumato.models.families.sd3.network import MMDiT
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget

_EMBEDDERS = {
    "context_embedder": "context",
    "t_embedder": "t",
    "x_embedder": "x",
    "y_embedder": "y",
    "final_layer.adaLN_modulation": "final_mod",
    "final_layer.linear": "final_linear",
}
"""Layers outside the blocks, which are adapted only by name, with their kinds."""

EMBEDDER_KINDS = tuple(_EMBEDDERS.values())
_STREAMS = {"context_block": "context", "x_block": "x"}
_LAYERS = {"attn": "attn", "attn2": "attn", "mlp": "mlp", "adaLN_modulation": "mod"}


def denoiser_targets(model: MMDiT) -> Iterator[AdapterTarget]:
    """Yield the layers of the blocks, then those outside them."""
    qkv = (model.shape.hidden_size,) * 3
    for index, block in enumerate(model.joint_blocks):
        for path, layer in linears(block):
            stream, name, *_ = path.split(".")
            kind = f"{_STREAMS[stream]}_{_LAYERS[name]}"
            full = joined("unet", f"joint_blocks.{index}.{path}")
            splits = qkv if path.endswith(".qkv") else ()
            yield AdapterTarget(full, layer, DENOISER, kind, ("joint", index), splits)
    for path, kind in _EMBEDDERS.items():
        for name, layer in linears(model.get_submodule(path), (nn.Linear, nn.Conv2d)):
            full = joined("unet", f"{path}.{name}".rstrip("."))
            yield AdapterTarget(full, layer, DENOISER, kind=kind, is_default=False)
