"""What FLUX.1 reads of a prompt: one pooled vector from CLIP-L and a sequence from T5-XXL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.models.components.tokenizers import CLIP_LENGTH, Tokenizer, load_clip, load_t5
from sfumato.models.interface.tokenizers import Tokenizers

CLIP = "clip_l"
T5 = "t5xxl"

OUTPUTS: Mapping[str, tuple[str, ...]] = {CLIP: ("l_pooled",), T5: ("t5_out", "t5_attn_mask")}
"""For each encoder, the names of what `encode` makes with it."""


def tokenizers(
    cache_dir: Path | None, bundled_dir: Path | None = None, access: HubAccess = ANYBODY
) -> Tokenizers[Tokenizer]:
    """Return the tokenizers of both encoders; a UserError if one that is asked for cannot be found or read.

    Args:
        cache_dir: `--tokenizer_cache_dir`; it comes first.
        bundled_dir: folder of tokenizers that the model brings along.
        access: how the hub is reached.
    """
    places = {"cache_dir": cache_dir, "bundled_dir": bundled_dir}
    load = {CLIP: load_clip, T5: load_t5}
    return Tokenizers({part: partial(find, **places, access=access) for part, find in load.items()})


def tokenize(
    tokenizers: Tokenizers[Tokenizer], captions: Sequence[str], t5_max_length: int
) -> dict[str, Tensor]:
    """Return what both encoders take.

    Returns:
        `clip_l`: (B, 77) int64. `t5xxl` and `t5xxl_mask`: (B, t5_max_length) int64, mask 1 = a real token.
    """
    t5 = tokenizers[T5](captions, t5_max_length)
    return {CLIP: tokenizers[CLIP](captions, CLIP_LENGTH).ids, T5: t5.ids, f"{T5}_mask": t5.mask}


def encode(
    encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor], apply_mask: bool
) -> dict[str, Tensor]:
    """Run those encoders that are given.

    Gradients flow wherever the caller lets them.

    Args:
        encoders: transformers' CLIPTextModel as `clip_l`, T5EncoderModel as `t5xxl`, or one of them.
        tokens: what `tokenize` returned; it is moved to each encoder's device.
        apply_mask: hide padding from T5's attention, as `--apply_t5_attn_mask` asks; the outputs at padding
            are then still not zero, and the transformer has to be told as well.

    Returns:
        `l_pooled`: (B, 768), CLIP-L's normalised state at the end token, without text projection.
        `t5_out`: (B, T, 4096), T5's last state. `t5_attn_mask`: (B, T) int64, 1 = a real token.
    """
    outputs = {}
    if CLIP in encoders:
        outputs["l_pooled"] = _encode_clip(encoders[CLIP], tokens[CLIP])
    if T5 in encoders:
        ids, mask = tokens[T5], tokens[f"{T5}_mask"]
        outputs["t5_out"] = _encode_t5(encoders[T5], ids, mask if apply_mask else None)
        outputs["t5_attn_mask"] = mask.to(outputs["t5_out"].device)
    return outputs


def _encode_clip(encoder: nn.Module, ids: Tensor) -> Tensor:
    return encoder(input_ids=ids.to(_device(encoder))).pooler_output


def _encode_t5(encoder: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    device = _device(encoder)
    mask = None if mask is None else mask.to(device)
    return encoder(input_ids=ids.to(device), attention_mask=mask).last_hidden_state


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
