"""LoRA that changes a bias beside the weight: PEFT's `lora_B.bias`, scaled as the weight's change is."""

from __future__ import annotations

from torch import Tensor

from sfumato.adapters.layers import lora
from sfumato.adapters.layers.file_form import FileForm, Tensors, Term
from sfumato.adapters.layers.kind import read_only

_BIAS = "lora_up.bias"


def _change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
    return tensors[_BIAS].float() * (lora.scale_of(tensors) * strength)


KIND = read_only(
    "lora_bias",
    "LoRA with bias",
    "a LoRA with biases",
    FileForm(
        marks=(_BIAS,),
        tensors=r"lora_(up|down)\.weight|lora_up\.bias",
        ranks=("lora_down",),
        is_scaled=True,
        terms=(Term("bias", (_BIAS,), _change, (lora.DOWN,)),),
    ),
)
