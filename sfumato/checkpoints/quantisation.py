"""Tell from a file's header alone that its weights are quantised, and by which program.

Weights that were merely cast to an 8-bit floating-point format are plain numbers and not meant here. Others
need numbers that lie beside them: whoever took them as they are would train on noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from sfumato.checkpoints.header import TensorInfo
from sfumato.config import json_text
from sfumato.errors import UserError

_SIGNS = (
    (r"\.quant_state\.bitsandbytes__", "4 bits by bitsandbytes (nf4, fp4)"),
    (r"\.SCB$", "int8 by bitsandbytes"),
    (r"\.weight\._(data|scale)\b", "optimum-quanto's layout"),
    (r"(^|\.)comfy_quant$", "ComfyUI's comfy_quant layout"),
    (r"(^|\.)scaled_fp8$|\.scale_weight$", "ComfyUI's scaled fp8 layout"),
    (r"\.float8_data$", "flumina's fp8 layout"),
    (r"\.qzeros$", "a layout of language models (GPTQ, AWQ)"),
    (r"\.(qweight|wscales|smooth_factor)$", "SVDQuant's layout (Nunchaku)"),
    (r"\.weight:|_weight_qdata$", "torchao's layout"),
    (r"\.weight_scale(_2)?$", "8 or 4 bits with scales beside them"),
    (r"\.(zero_point|svd_up)$", "SDNQ's layout"),
)
"""What occurs in a tensor's name, and what the weights are then; the first that occurs counts."""

_COMFY_METADATA = "_quantization_metadata"
_COMFY = "ComfyUI's comfy_quant layout"
_REMEDY = "use the file in bf16, fp16 or plain fp8"


def quantised_as(tensors: Mapping[str, TensorInfo], metadata: Iterable[str] = ()) -> tuple[str, str] | None:
    """Return how a file's weights are quantised, and the name that says so; None if they are not.

    Args:
        tensors: what the header says of each.
        metadata: names of the file's own strings.
    """
    for sign, layout in _SIGNS:
        if name := next(filter(re.compile(sign).search, tensors), None):
            return layout, name
    if _COMFY_METADATA in metadata:
        return _COMFY, _COMFY_METADATA
    whole = (name for name, info in tensors.items() if _is_whole_weight(name, info))
    return next((("integers in a layout that is not known", name) for name in whole), None)


def require_plain(path: Path, tensors: Mapping[str, TensorInfo], metadata: Iterable[str]) -> None:
    """Raise UserError if a file's weights are quantised; arguments are those of `quantised_as`."""
    if found := quantised_as(tensors, metadata):
        layout, name = found
        raise UserError(
            f"{path} is quantised, as {name} tells: {layout}, which cannot be loaded here; {_REMEDY}"
        )


def require_plain_folder(folder: Path) -> None:
    """Raise UserError if the settings in a folder of diffusers or transformers say it is quantised."""
    settings = folder / "config.json"
    try:
        told = json_text.parse(settings.read_text(encoding="utf-8"))["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError):  # not said, or damaged, which is reported elsewhere
        return
    raise UserError(f"{folder} is quantised by {told}, as its config.json says; {_REMEDY}")


def _is_whole_weight(name: str, info: TensorInfo) -> bool:
    return name.endswith(".weight") and info.dtype in (torch.int8, torch.uint8)
