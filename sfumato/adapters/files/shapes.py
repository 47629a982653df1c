"""The shape of a layer's weight, as far as the tensors of its adapter and its name tell.

Matrices that stand for a kernel have it in their columns, so that LoHa and LoKr mostly leave open whether
their layer is a convolution. A rotation knows its layer's outputs alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from sfumato.adapters.files.sizes import shapes_of
from sfumato.adapters.layers import kinds
from sfumato.adapters.layers.told_shape import ToldShape

_OF_UNET = re.compile(r"lora_unet_((down|up|mid|input|output|middle)_block|conv_|out_)")
_LINEAR = re.compile(r"_(to_[qkv]|to_out_0|ff_net_0_proj|ff_net_2|time_emb_proj|emb_layers_1)$")
"""Layers that are Linear in every UNet; others are convolutions in some."""


def told_shape(name: str, tensors: Mapping[str, Tensor]) -> ToldShape | None:
    """Return the shape of a layer's weight; None where its adapter does not have one.

    Args:
        name: the layer's, as files have it; some kinds of layers are never convolutions.
        tensors: by their names within the layer.
    """
    kind = kinds.loading(tensors, name)
    if kind is None or kind.files.missing(tensors):
        return None
    shape = kind.files.shape(shapes_of(tensors))
    if shape and shape.kernel is None and (not _OF_UNET.match(name) or _LINEAR.search(name)):
        return replace(shape, kernel=())
    return shape
