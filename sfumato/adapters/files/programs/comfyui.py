"""ComfyUI: takes what it knows, layer by layer, and logs the rest; as of October 2025."""

from __future__ import annotations

import re

from sfumato.adapters.files.programs.keys import acting
from sfumato.adapters.files.programs.verdict import Shapes, Verdict

_HALVES = r"(lora_(up|down|mid)|lora_[AB](\.default)?|lora_linear_layer\.(up|down))\.weight"
_LEAVES = (
    rf"{_HALVES}|alpha|dora_scale|hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2)|[ab][12]\.weight|bm\.weight"
    r"|diff|diff_b|w_norm|b_norm|oft_blocks|rescale|set_weight|reshape_weight"
)
_TAKEN = (
    rf"(lora_unet|lora_transformer|lycoris|lora_te\d?)_\w+\.({_LEAVES})$",
    rf"(diffusion_model|transformer|text_encoders|text_encoder(_2)?)\..+\.({_LEAVES})$",
    rf"unet\.(?!.*\.attn\d\.to_).+\.({_LEAVES})$",
    r"(unet\.)?.+\.attn\d\.processor\.to_(q|k|v|out)_lora\.(up|down)\.weight$",
)
"""Layers of attention are known by the names of diffusers' old processors, and not by those of PEFT."""
_WHOLE_XLABS = {
    f"{block}.processor.{layer}.{half}.weight"
    for block, layer in (("double_blocks.18", "qkv_lora2"), ("single_blocks.37", "qkv_lora"))
    for half in ("down", "up")
}
_CONTROL = {"img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale"}


def judge(shapes: Shapes) -> Verdict:
    """Return what ComfyUI makes of a file."""
    if shapes.keys() >= _WHOLE_XLABS or shapes.keys() >= _CONTROL:
        return Verdict(frozenset(shapes))
    taken = [key for key in shapes if any(re.match(pattern, key) for pattern in _TAKEN)]
    return Verdict(acting(taken), remarks=tuple(_remarks(shapes)))


def _remarks(shapes: Shapes) -> list[str]:
    remarks = []
    if any(key.endswith(".dora_scale") and _is_of_outputs(shape) for key, shape in shapes.items()):
        remarks.append("DoRA acts otherwise there: it divides by the norm of the unchanged weight")
    if any(".lora_magnitude_vector" in key for key in shapes):
        remarks.append("DoRA acts as plain LoRA there")
    if kernels := sum(key.endswith(".lokr_t2") for key in shapes):
        remarks.append(f"{kernels} LoKr layers with Tucker factors fail there and change nothing")
    if any(key.endswith(".rescale") for key in shapes):
        remarks.append("rotations are not rescaled there")
    return remarks


def _is_of_outputs(shape: tuple[int, ...]) -> bool:
    return len(shape) < 2 or all(side == 1 for side in shape[1:])
