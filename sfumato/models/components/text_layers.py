"""The paths of text encoders' layers, by which adapter files tell one encoder from another."""

from __future__ import annotations

import re

_CLIP = "text_model_"
_KINDS = {"clip": ("text_model_", "text_projection"), "t5": ("encoder_block_", "encoder_final_layer_norm")}
_OUTSIDE = "encoder_layers_"
"""How CLIP's paths begin in versions of transformers that leave out one level."""
_OLD = {"self_attn_to_q": "q", "self_attn_to_k": "k", "self_attn_to_v": "v", "self_attn_to_out": "out"}
"""Ends of paths that diffusers gave CLIP's attention in 2023, and what they stand for."""
_DOTTED = (
    (r"text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)", r"text_model.encoder.layers.\1.\2.\3"),
    (
        r"encoder_block_(\d+)_layer_(\d+)_(SelfAttention|DenseReluDense)_(\w+)",
        r"encoder.block.\1.layer.\2.\3.\4",
    ),
)


def plain(path: str) -> str:
    """Return a path as adapter files have it: as transformers 4 names it, with underscores for dots."""
    path = f"{_CLIP}{path}" if path.startswith(_OUTSIDE) else path
    old = next((end for end in _OLD if path.endswith(f"_{end}")), None)
    return f"{path.removesuffix(old)}self_attn_{_OLD[old]}_proj" if old else path


def kind_of(path: str) -> str | None:
    """Return whether a plain path is one of `clip` or of `t5`; None if of neither."""
    return next((kind for kind, starts in _KINDS.items() if path.startswith(starts)), None)


def dotted(path: str) -> str | None:
    """Return the module path of an attention or feed-forward layer by its plain path; None if it is none."""
    for pattern, module in _DOTTED:
        if match := re.fullmatch(pattern, path):
            return match.expand(module)
    return None
