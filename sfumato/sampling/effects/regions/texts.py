"""Texts of several sub-prompts, as one batch of what a UNet reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfumato.sampling.effects.regions.layout import Layout
from sfumato.sampling.encoding import Text


def regional_texts(told: Mapping[str, Tensor], rows: Sequence[Text], layout: Layout) -> dict[str, Tensor]:
    """Return what a UNet is told: a row for each text.

    What sums a text up, (B, P), has no tokens that regions could choose from: of an image's sub-prompts the
    last one's is told, as sd-scripts does.

    Args:
        told: the text encoders' outputs by name, where there is one prompt an image.
        rows: of every text, the text encoders' outputs, each (1, ...), in the order of the layout.
    """
    last = layout.num_prompts - 1
    summing = [*rows[layout.rows_of(last)], *rows[layout.num_asked :]]
    return {
        name: torch.cat([row[name] for row in (rows if text.dim() == 3 else summing)]).to(text.device)
        for name, text in told.items()
    }
