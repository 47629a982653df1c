"""Adapter files for models that are none of ours, and forms that nothing here reads, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stranger:
    """A kind of file.

    Attributes:
        what: with its article.
        pattern: found in one of the keys.
        inputs: of the layers with such keys, if names alone do not tell; as the second side of `down`.
        without: found in none of the keys.
    """

    what: str
    pattern: str
    inputs: tuple[int, ...] = ()
    without: str = r"(?!)"

    def fits(self, shapes: Shapes) -> bool:
        """Return whether a file with these tensors is of the kind."""
        keys = [key for key in shapes if re.search(self.pattern, key)]
        if self.inputs:
            keys = [key for key in keys if len(shapes[key]) > 1 and shapes[key][1] in self.inputs]
        return bool(keys) and not any(re.search(self.without, key) for key in shapes)


_DOWN = r".*(lora_A|lora_down|lora\.down)"
_STRANGERS = (
    Stranger(
        "a LoRA in the first form of all (cloneofsimo's), a list in the order of modules",
        r"^\w+:\d+:(up|down)",
    ),
    Stranger("a LoRA for Wan", r"blocks[._]\d+[._](self|cross)_attn[._]"),
    Stranger(
        "a LoRA for HunyuanVideo",
        r"double_blocks(\.\d+\.(img|txt)_attn_(qkv|proj)\.|[._]\d+[._](img|txt)_(mlp[._]fc|mod[._]linear))",
    ),
    Stranger("a LoRA for Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)[._]"),
    Stranger(
        "a LoRA for Qwen-Image",
        r"(?<!single_)transformer_blocks[._](19|[2-9]\d)[._]attn[._]",
        without=r"single_transformer_blocks",
    ),
    Stranger("a LoRA for FLUX.2", r"to_qkv_mlp_proj|(double|single)_stream_modulation"),
    Stranger("a LoRA for FLUX.2", r"double_blocks[._]\d+[._]img_attn[._]qkv" + _DOWN, (6144, 4096)),
    Stranger("a LoRA for FLUX.2", r"transformer_blocks[._]\d+[._]attn[._]to_q\b" + _DOWN, (6144, 4096)),
    Stranger("a LoRA for Z-Image", r"(^|[._])layers[._]\d+[._](attention|feed_forward)[._]"),
    Stranger("a LoRA for Stable Cascade", r"^lora_prior_unet_"),
    Stranger("a LoRA for the SDXL refiner", r"attn2[._]to_[kv]\b" + _DOWN, (1280,)),
    Stranger("an AnimateDiff motion module", r"motion_modules[._]"),
    Stranger("an IP-Adapter", r"^(ip_adapter|image_proj)\."),
    Stranger("a hypernetwork", r"^(320|640|768|1024|1280)(\.\d+\.|$)"),
)


def refuse(path: Path, shapes: Shapes) -> None:
    """Raise UserError if a file is for a model that is none of ours.

    Args:
        shapes: of the tensors, by their keys in the file.
    """
    found = next((stranger for stranger in _STRANGERS if stranger.fits(shapes)), None)
    if found:
        raise UserError(
            f"{path} is {found.what}, which cannot be used here; give an adapter for one of our models"
        )
