"""BLIP's weights as its authors published them, under the names that transformers has for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints.pickles import read_pickle
from sfumato.errors import UserError, guest_code
from sfumato.hub.access import HubAccess
from sfumato.hub.fetching import fetched_files
from sfumato.hub.names import HubName
from sfumato.lean_imports import lean
from sfumato.nn.device import default_device
from sfumato.tools.captioning.sentences.language_models import processor_of

LARGE = "Salesforce/blip-image-captioning-large"
"""The same weights on the Hub, with the settings and the vocabulary that the file does not hold."""

_SETTINGS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
)
_NAMES = (
    (r"^visual_encoder\.patch_embed\.proj", "vision_model.embeddings.patch_embedding"),
    (r"^visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.norm", "vision_model.post_layernorm"),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj", r"vision_model.encoder.layers.\1.self_attn.projection"),
    (r"^visual_encoder\.blocks\.(\d+)\.attn", r"vision_model.encoder.layers.\1.self_attn"),
    (r"^visual_encoder\.blocks\.(\d+)\.norm(\d)", r"vision_model.encoder.layers.\1.layer_norm\2"),
    (r"^visual_encoder\.blocks", "vision_model.encoder.layers"),
)
"""The beginning of each name, and what stands for it; the text decoder's names are the same."""


def load(path: Path, access: HubAccess) -> tuple[Any, Any]:
    """Return (model, processor) of a .pth file; what it lacks is taken from the Hub.

    Raises:
        UserError: the file holds something else, or the rest cannot be fetched.
    """
    weights = renamed(read_pickle(path))
    what = f"the vocabulary for --caption_weights {path}"
    folder = fetched_files(HubName(LARGE), _SETTINGS, what, access)
    if folder is None or not (folder / "config.json").is_file():
        raise UserError(f"{what} is not on this machine; go without --offline once, or give a folder")
    with lean():
        from transformers import BlipConfig, BlipForConditionalGeneration
    with guest_code(f"--caption_weights {path} does not fit {LARGE}", "give the large model for captions"):
        model: Any = BlipForConditionalGeneration(
            BlipConfig.from_pretrained(str(folder), local_files_only=True)
        )
        found = model.load_state_dict(weights, strict=False)
        if missing := [name for name in found.missing_keys if not name.endswith("position_ids")]:
            raise KeyError(missing[0])
        processor = processor_of(folder)
    return model.eval().requires_grad_(False).to(default_device()), processor


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of transformers."""
    return {_renamed(name): tensor for name, tensor in tensors.items()}


def _renamed(name: str) -> str:
    for old, new in _NAMES:
        name, count = re.subn(old, new, name)
        if count:
            break
    return name
