"""LoRA of a convolution in Tucker's form, as LyCORIS' LoCon has it: a small kernel between down and up."""

from __future__ import annotations

import math

from sfumato.adapters.layers import lora
from sfumato.adapters.layers.file_form import FileForm, Shapes
from sfumato.adapters.layers.kind import read_only
from sfumato.adapters.layers.told_shape import ToldShape


def _shape(shapes: Shapes) -> ToldShape:
    kernel = shapes[lora.CORE][2:]
    return ToldShape(shapes[lora.UP][0], shapes[lora.DOWN][1] * math.prod(kernel), kernel)


KIND = read_only(
    "tucker_lora",
    "Tucker LoRA",
    "a LoRA in Tucker's form",
    FileForm(
        marks=(lora.CORE,),
        tensors=r"lora_(up|down|mid)\.weight",
        ranks=("lora_down",),
        is_scaled=True,
        shape=_shape,
    ),
)
