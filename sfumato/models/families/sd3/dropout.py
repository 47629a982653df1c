"""Captions of which the model is shown only what some of its text encoders say, so that it works without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from sfumato.transfer import to_device

_OUTPUTS = (
    ("l_out", "l_pooled", "clip_l_attn_mask"),
    ("g_out", "g_pooled", "clip_g_attn_mask"),
    ("t5_out", "t5_attn_mask"),
)


@dataclass(frozen=True)
class TextDropout:
    """Shares of captions, from 0 to 1, that go without what an encoder says."""

    clip_l: float = 0.0
    clip_g: float = 0.0
    t5: float = 0.0


def drop(words: Mapping[str, Tensor], rates: TextDropout, rng: torch.Generator) -> Mapping[str, Tensor]:
    """Return the encoders' outputs, each (B, ...), with zeros in the place of those that are left out.

    Args:
        rng: on the processor; nothing is drawn for a rate of 0.
    """
    dropped = words
    for encoder, rate in enumerate(astuple(rates)):
        output = words.get(_OUTPUTS[encoder][0])
        if rate and output is not None:
            dropped = without(dropped, encoder, torch.rand(len(output), generator=rng) < rate)
    return dropped


def without(words: Mapping[str, Tensor], encoder: int, is_dropped: Tensor) -> Mapping[str, Tensor]:
    """Return outputs, each (B, ...), with zeros for all that an encoder says of some captions.

    Args:
        encoder: 0 for CLIP-L, 1 for CLIP-G, 2 for T5.
        is_dropped: (B,) bool.
    """
    names = (name for name in _OUTPUTS[encoder] if name in words)
    return {**words, **{name: _masked(words[name], ~is_dropped) for name in names}}


def _masked(output: Tensor, is_kept: Tensor) -> Tensor:
    rows = to_device(is_kept, output.device).reshape(-1, *[1] * (output.ndim - 1))
    return torch.where(rows, output, torch.zeros_like(output))
