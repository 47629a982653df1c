"""What Stable Diffusion 3 reads of a prompt: two CLIP encoders side by side, then T5.

The states of CLIP-L and CLIP-G are joined token by token and widened to T5's with zeros; T5's follow them.
The projected summaries of both CLIPs are the pooled vector (Esser et al. 2024, section 4 and figure 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.tokenizers import CLIP_LENGTH, Tokenizer, load_t5
from sfumato.models.interface.tokenizers import Tokenizers

CLIP_L, CLIP_G, T5XXL = "clip_l", "clip_g", "t5xxl"

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    CLIP_L: ("l_out", "l_pooled", "clip_l_attn_mask"),
    CLIP_G: ("g_out", "g_pooled", "clip_g_attn_mask"),
    T5XXL: ("t5_out", "t5_attn_mask"),
}
"""For each encoder, the names of what `encode` makes with it."""

_SOURCES = {
    CLIP_L: clip.TokenizerSource("tokenizer"),
    CLIP_G: clip.TokenizerSource("tokenizer_2", ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",), "!"),
}
_PENULTIMATE = 2


def tokenizers(
    cache_dir: Path | None, base: Path | None, parts: Sequence[str], access: HubAccess = ANYBODY
) -> Tokenizers[Tokenizer]:
    """Return the tokenizers of these encoders; a UserError if one that is asked for cannot be found or read.

    Args:
        cache_dir: `--tokenizer_cache_dir`; it comes first.
        base: file or folder of the base, which may bring tokenizers along.
        access: how the hub is reached.
    """
    load = partial(clip.load_tokenizer, checkpoint=base, cache_dir=cache_dir, access=access)
    loaders = {part: partial(load, source) for part, source in _SOURCES.items()}
    loaders[T5XXL] = partial(_load_t5, cache_dir, base, access)
    return Tokenizers({part: loaders[part] for part in parts})


def tokenize(tokenizers: Tokenizers[Tokenizer], captions: Sequence[str], t5_length: int) -> dict[str, Tensor]:
    """Return what the encoders take.

    Returns:
        By the name of each encoder, ids (B, 77), or (B, t5_length) for T5, and as `<name>_mask` as many
        marks, 1 = a real token; all int64.
    """
    tokens = {}
    for part in tokenizers:
        read = tokenizers[part](captions, t5_length if part == T5XXL else CLIP_LENGTH)
        tokens |= {part: read.ids, f"{part}_mask": read.mask}
    return tokens


def encode(
    encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor], masked: Sequence[str]
) -> dict[str, Tensor]:
    """Run those encoders that are given; gradients flow wherever the caller lets them.

    Args:
        encoders: transformers' CLIPTextModelWithProjection as `clip_l` and `clip_g`, T5EncoderModel as
            `t5xxl`, or some of them.
        tokens: what `tokenize` returned; it is moved to each encoder's device.
        masked: encoders that do not see padding.

    Returns:
        `l_out` (B, 77, 768) and `g_out` (B, 77, 1280), the states of the last layer but one; `l_pooled`
        (B, 768) and `g_pooled` (B, 1280), projected; `t5_out` (B, T, 4096); and the masks.
    """
    outputs = {}
    for part, encoder in encoders.items():
        device = next(encoder.parameters()).device
        ids, mask = tokens[part].to(device), tokens[f"{part}_mask"].to(device)
        seen = mask if part in masked else None
        if part == T5XXL:
            made = [encoder(input_ids=ids, attention_mask=seen).last_hidden_state]
        else:
            out = encoder(input_ids=ids, attention_mask=seen, output_hidden_states=True)
            made = [out.hidden_states[-_PENULTIMATE], out.text_embeds]
        outputs |= dict(zip(OUTPUTS[part], [*made, mask], strict=True))
    return outputs


def context(words: Mapping[str, Tensor], width: int) -> Tensor:
    """Return the text tokens, (B, 77 + T, width): those of both CLIPs, widened with zeros, then T5's.

    Without T5 there are 77 zeros in its place.
    """
    clips = torch.cat([words["l_out"], words["g_out"].to(words["l_out"])], dim=-1)
    clips = F.pad(clips, (0, width - clips.shape[-1]))
    t5 = words["t5_out"].to(clips) if "t5_out" in words else torch.zeros_like(clips)
    return torch.cat([clips, t5], dim=1)


def pooled(words: Mapping[str, Tensor]) -> Tensor:
    """Return the summaries of both CLIPs, (B, 2048)."""
    return torch.cat([words["l_pooled"], words["g_pooled"].to(words["l_pooled"])], dim=-1)


def _load_t5(cache_dir: Path | None, base: Path | None, access: HubAccess) -> Tokenizer:
    """Load T5's tokenizer from where a base has it, or from where `load_t5` looks."""
    if base is not None and (base / "tokenizer_3").is_dir():
        return load_t5("tokenizer_3", cache_dir=cache_dir, bundled_dir=base, access=access)
    beside = base.parent / "tokenizers" if base else None
    return load_t5(cache_dir=cache_dir, bundled_dir=beside, access=access)
