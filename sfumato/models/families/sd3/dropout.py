"""Captions of which the model is shown only what some of its text encoders say, so that it works without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from sfumato.transfer import to_device

_OUTPUTS = (("l_out", "l_pooled"), ("g_out", "g_pooled"), ("t5_out",))


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
    dropped = dict(words)
    for names, rate in zip(_OUTPUTS, astuple(rates), strict=True):
        if rate and names[0] in words:
            is_kept = torch.rand(len(words[names[0]]), generator=rng) >= rate
            dropped |= {name: _masked(words[name], is_kept) for name in names}
    return dropped


def _masked(output: Tensor, is_kept: Tensor) -> Tensor:
    rows = to_device(is_kept, output.device).reshape(-1, *[1] * (output.ndim - 1))
    return torch.where(rows, output, torch.zeros_like(output))
