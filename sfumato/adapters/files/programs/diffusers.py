"""diffusers 0.42: for UNets everything or nothing; of transformers' files it drops what it does not know.

Of Stable Diffusion 3 it knows its own names alone: nothing of a file with published names is loaded.
"""

from __future__ import annotations

import re

from sfumato.adapters.files.programs.keys import acting, is_transformer
from sfumato.adapters.files.programs.verdict import Shapes, Verdict

_KOHYA = r"(lora_(up|down)\.weight|alpha)"
_PEFT = r"(lora_[AB](\.default)?\.(weight|bias)|lora_magnitude_vector(\.weight)?|alpha)"
_OWNERS = r"(unet|transformer|text_encoder(_2)?)\."
_OF_UNETS = (
    rf"(lora_unet|lora_te\d?)_\w+\.{_KOHYA}$",
    rf"{_OWNERS}.+\.{_PEFT}$",
    rf"{_OWNERS}.+[._]lora(_linear_layer)?\.(up|down)\.weight$",
    rf"{_OWNERS}.+\.{_KOHYA}$",
)
_OF_TRANSFORMERS = (
    rf"lora_(unet_(double|single)_blocks|te1?_text_model)_\w+\.{_KOHYA}$",
    rf"diffusion_model\.(double|single)_blocks\..+\.{_KOHYA}$",
    rf"transformer\..+\.{_PEFT}$",
    rf"text_encoder_2\.text_model\..+\.{_PEFT}$",
    rf"text_encoder\..+\.({_PEFT}|{_KOHYA})$",
    r".*\.processor\.(qkv|proj)_lora[12]?\.(up|down)\.weight$",
)
_UNKNOWN = re.compile(r"(^|[._])joint_blocks[._]")
_COLLAPSED = "lora_unet_add_embedding_linear_"
"""Layers that its conversion gives one name, which no layer has."""
_DORA = ".dora_scale"
_AS_LORA = "DoRA acts as plain LoRA there"
_MOST_BLOCKS = ("double_blocks.18.", "single_blocks.37.")


def judge(shapes: Shapes) -> Verdict:
    """Return what diffusers makes of a file."""
    refusal = _refusal(shapes)
    if refusal:
        return Verdict(refusal=refusal)
    rest = {key: shape for key, shape in shapes.items() if not key.endswith(_DORA)}
    verdict = _of_transformer(rest) if is_transformer(shapes) else _of_unet(rest)
    if verdict.loaded and len(rest) < len(shapes):
        return Verdict(verdict.loaded, remarks=(_AS_LORA,))
    return verdict


def _refusal(shapes: Shapes) -> str:
    """Return why a file of any model is refused; "" if it is not."""
    if any(key.startswith("bundle_emb.") for key in shapes):
        return "it holds words of textual inversion"
    if all(key.startswith(("lycoris_", "oft_unet_")) for key in shapes):
        return "no layer is called lora"
    return ""


def _of_transformer(shapes: Shapes) -> Verdict:
    if any(map(_UNKNOWN.search, shapes)):
        return Verdict()
    if any(re.match(r"lora_transformer_.*\.lora_(up|down)\.", key) for key in shapes):
        return Verdict(refusal="it confuses the layers of OneTrainer's naming")
    if any(key.startswith("base_model.") for key in shapes):
        whole = all(any(block in key for key in shapes) for block in _MOST_BLOCKS)
        return (
            Verdict(frozenset(shapes)) if whole else Verdict(refusal="base_model needs all published names")
        )
    if any(key.endswith(".query_norm.scale") for key in shapes) and "img_in.lora_A.weight" in shapes:
        return Verdict(frozenset(shapes))
    return Verdict(acting([key for key in shapes if any(re.match(form, key) for form in _OF_TRANSFORMERS)]))


def _of_unet(shapes: Shapes) -> Verdict:
    strange = next((key for key in shapes if not any(re.match(form, key) for form in _OF_UNETS)), None)
    if strange is not None:
        return Verdict(refusal=f"it does not know {strange}")
    for key, shape in shapes.items():
        up = key.replace("lora_down", "lora_up")
        if key.endswith("lora_down.weight") and len(shape) == 4 and len(shapes.get(up, shape)) == 2:
            return Verdict(refusal=f"{up} has no kernel")
    return Verdict(acting([key for key in shapes if not key.startswith(_COLLAPSED)]))
