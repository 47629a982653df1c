"""InvokeAI: a file is taken if every key of it has the form that is known; as of August 2026."""

from __future__ import annotations

import re

from sfumato.adapters.files.programs.keys import is_transformer
from sfumato.adapters.files.programs.verdict import Shapes, Verdict

_KOHYA = re.compile(r"(lora_unet|lora_te\d?)_")
_TRANSFORMER = re.compile(r"lora_unet_(double|single)_blocks_|lora_te1_text_model_|lora_te2_encoder_")
_WITHOUT_CLASS = re.compile(r"\.(oft_blocks|[ab][12]\.weight)$")
_FACTORS = re.compile(r"\.(hada|lokr)_")


def judge(shapes: Shapes) -> Verdict | None:
    """Return what InvokeAI makes of a file with sd-scripts' names; None for others."""
    keys = [key for key in shapes if not key.startswith("bundle_emb.")]
    if any(key.startswith("oft_unet_") for key in keys):
        return Verdict(refusal="it does not know oft_unet_")
    if not any(map(_KOHYA.match, keys)):
        return None
    known = _TRANSFORMER if is_transformer(keys) else _KOHYA
    if strange := next((key for key in keys if not known.match(key)), None):
        return Verdict(refusal=f"it does not know {strange}")
    if strange := next((key for key in keys if _WITHOUT_CLASS.search(key)), None):
        return Verdict(refusal=f"it has nothing for {strange}")
    return Verdict(frozenset(keys), remarks=tuple(_remarks(shapes)))


def _remarks(shapes: Shapes) -> list[str]:
    scales = [shape for key, shape in shapes.items() if key.endswith(".dora_scale")]
    if scales and any(map(_FACTORS.search, shapes)):
        return ["DoRA on LoHa or LoKr is an error there"]
    if any(len(shape) < 2 or shape[1] == 1 for shape in scales):
        return ["DoRA acts otherwise there: it takes the scale for one of inputs"]
    return []
