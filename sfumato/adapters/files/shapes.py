"""The shape of a layer's weight, as far as the tensors of its adapter tell.

Matrices that stand for a kernel have it in their columns, so that LoHa and LoKr mostly leave open whether
their layer is a convolution. A rotation knows its layer's outputs alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_CORES = ("hada_t1", "lokr_t2", "lokr_w2")
"""Tensors of LoHa and LoKr that keep a kernel, where their layer is a convolution."""
_OF_UNET = re.compile(r"lora_unet_((down|up|mid|input|output|middle)_block|conv_|out_)")
_LINEAR = re.compile(r"_(to_[qkv]|to_out_0|ff_net_0_proj|ff_net_2|time_emb_proj|emb_layers_1)$")
"""Layers that are Linear in every UNet; others are convolutions in some."""


@dataclass(frozen=True)
class ToldShape:
    """What a layer's tensors tell.

    Attributes:
        rows, columns: of the weight as a matrix, a kernel being part of the columns.
        kernel: () of a Linear; None where it is not told.
    """

    rows: int
    columns: int
    kernel: tuple[int, ...] | None = ()

    def module(self) -> nn.Module:
        """Return a layer of this shape that needs no memory.

        Raises:
            ValueError: the kernel is not told.
        """
        if self.kernel is None:
            raise ValueError("a layer's kernel is not told")
        size = math.prod(self.kernel)
        with torch.device("meta"):
            if not self.kernel:
                return nn.Linear(self.columns, self.rows)
            return nn.Conv2d(self.columns // size, self.rows, self.kernel)  # type: ignore[arg-type]


def told_shape(name: str, tensors: Mapping[str, Tensor]) -> ToldShape | None:
    """Return the shape of a layer's weight; None where its adapter does not have one.

    Args:
        name: the layer's, as files have it; some kinds of layers are never convolutions.
        tensors: by their names within the layer.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if {"lora_down.weight", "lora_up.weight"} <= shapes.keys():
        down = shapes["lora_down.weight"]
        return ToldShape(shapes["lora_up.weight"][0], math.prod(down[1:]), down[2:])
    core = next((shapes[key] for key in _CORES if key in shapes), None)
    kernel = None if core is None else core[2:]
    if kernel is None and (not _OF_UNET.match(name) or _LINEAR.search(name)):
        kernel = ()
    if "hada_w1_a" in shapes:
        outer, inner = shapes["hada_w1_a"], shapes["hada_w1_b"]
        if "hada_t1" in shapes:
            return ToldShape(outer[1], inner[1] * math.prod(kernel or ()), kernel)
        return ToldShape(outer[0], inner[1], kernel)
    if "lokr_w1" in shapes or "lokr_w1_a" in shapes:
        (rows, columns), (more_rows, more_columns) = _sides(shapes, 1), _sides(shapes, 2)
        return ToldShape(rows * more_rows, columns * more_columns, kernel)
    return None


def _sides(shapes: Mapping[str, tuple[int, ...]], index: int) -> tuple[int, int]:
    """Return both sides of a factor of a LoKr, a kernel being part of the second."""
    whole = shapes.get(f"lokr_w{index}")
    if whole is not None:
        return whole[0], math.prod(whole[1:])
    outer, inner, core = shapes[f"lokr_w{index}_a"], shapes[f"lokr_w{index}_b"], shapes.get(f"lokr_t{index}")
    if core is not None:
        return outer[1], inner[1] * math.prod(core[2:])
    return outer[0], inner[1]
