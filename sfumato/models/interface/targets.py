"""The layers that adapters attach to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class AdapterTarget:
    """One layer that an adapter may attach to.

    Attributes:
        name: the layer's part of an adapter file's key, after the adapter kind's own prefix:
            `unet_double_blocks_0_img_attn_qkv` becomes `lora_unet_double_blocks_0_img_attn_qkv`.
        module: the Linear or Conv2d itself.
        part: the part it belongs to ("denoiser" or a text encoder's name).
        kind: what sort of layer it is within its family (`img_attn`, `single_mod` ...), for per-kind ranks.
        block: (kind of block, index), or None outside the repeated blocks.
        splits: output widths of the projections fused in this layer; empty for an ordinary layer.
        is_default: whether it is adapted when nobody asks for it by name.
    """

    name: str
    module: nn.Module
    part: str
    kind: str = ""
    block: tuple[str, int] | None = None
    splits: tuple[int, ...] = ()
    is_default: bool = True
