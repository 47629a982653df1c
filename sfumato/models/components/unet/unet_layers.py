"""The layers of a UNet under both names: the published checkpoint's and diffusers'."""

from __future__ import annotations

from collections.abc import Iterator

from sfumato.models.components.unet.unet_names import Topology, within_resnets
from sfumato.models.interface.layer_names import LayerNames, flat

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER = (
    *(f"{attention}.{name}" for attention in ("attn1", "attn2") for name in _ATTENTION),
    *("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"),
)
CONTEXT = ("attn2_to_k", "attn2_to_v")
"""The layers that read the text: the number of their inputs tells models apart."""


def layers(topology: Topology, depth: int, *, has_published_names: bool) -> Iterator[LayerNames]:
    """Yield all layers with weights, norms included.

    Args:
        depth: blocks of a transformer at most.
        has_published_names: whether our adapter files name layers as checkpoints do.
    """
    for published, diffusers in topology.table().items():
        for theirs, ours in _within(diffusers, depth):
            paths = [".".join(filter(None, pair)) for pair in ((published, theirs), (diffusers, ours))]
            own = paths[0] if has_published_names else paths[1]
            yield LayerNames(f"unet_{flat(own)}", paths[0], (paths[1],))


def _within(block: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield the layers within a block under both names; ("", "") where it is a layer itself."""
    if ".resnets." in block:
        yield from ((theirs, ours) for ours, theirs in within_resnets().items())
    elif ".attentions." in block:
        inner = (f"transformer_blocks.{i}.{name}" for i in range(depth) for name in _TRANSFORMER)
        yield from ((name, name) for name in ("norm", "proj_in", "proj_out", *inner))
    else:
        yield "", ""
