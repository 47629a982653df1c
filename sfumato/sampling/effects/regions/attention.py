"""Attention to several texts at once, each in its region (attention couple)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from sfumato.adapters.layers.layer import AdapterLayer
from sfumato.models.components.unet.attention import Processor
from sfumato.sampling.effects.regions.layout import Layout
from sfumato.sampling.effects.regions.place import Place

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

_LEAST = 1e-4
"""Added to the sum of all masks, where no region may be."""


class RegionalProcessor:
    """Has each sub-prompt of an image asked, and mixes the answers by masks; other passes are as ever.

    Args:
        adapters: of the projection behind attention, by the sub-prompt that each belongs to. They are not
            attached: their changes are added where their masks are, whatever other masks lie there too.
    """

    def __init__(self, layout: Layout, place: Place, adapters: Mapping[int, AdapterLayer]) -> None:
        self._layout = layout
        self._place = place
        self._adapters = adapters
        self._ask = Processor()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return what `attn` makes of (B, L, W), in the same shape; see `Processor`.

        Args:
            encoder_hidden_states: (rows, S, C), the texts, in the order of a `Layout`.
        """
        projection, dropout = cast(nn.ModuleList, attn.to_out)
        answers = self._ask.attended(attn, self._layout.spread(hidden_states), encoder_hidden_states)
        found, num_asked = projection(answers), self._layout.num_asked
        mixed = self._mixed(answers[:num_asked], found[:num_asked])
        return dropout(torch.cat([mixed, found[num_asked:]]))

    def _mixed(self, answers: Tensor, found: Tensor) -> Tensor:
        """Return (images, L, W) of what the projection found in the answers to sub-prompts."""
        masks = self._place.of_tokens(found)
        by_prompt = found.unflatten(0, (self._layout.num_images, self._layout.num_prompts))
        mixed = (by_prompt * masks).sum(dim=1) / (masks.sum(dim=0) + _LEAST)
        for number, adapter in self._adapters.items():
            rows = self._layout.rows_of(number)
            mixed = mixed + masks[number] * (adapter.change(answers[rows], found[rows]) - found[rows])
        return mixed
