"""Attention layers of diffusers' UNets, computed as all others are here: diffusers asks a "processor" how."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from sfumato.nn.attention import attend

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


class Processor:
    """Multi-head attention without norms or residuals of its own, as in a UNet's transformer blocks."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return what `attn` makes of (B, L, W), in the same shape; diffusers chose the arguments' names.

        Args:
            encoder_hidden_states: (B, S, C), the text; None is self-attention.
            attention_mask: always None, since a UNet sees padding too.
        """
        if attention_mask is not None:
            raise ValueError("a UNet's attention hides no tokens")
        projection, dropout = cast(nn.ModuleList, attn.to_out)
        return dropout(projection(self.attended(attn, hidden_states, encoder_hidden_states)))

    def attended(self, attn: Attention, hidden_states: Tensor, context: Tensor | None) -> Tensor:
        """Return what the heads found, (B, L, W), before it is projected.

        Args:
            hidden_states: (B, L, W), what asks.
            context: (B, S, C), what is asked; None is `hidden_states`.
        """
        context = hidden_states if context is None else context
        query, key, value = (
            cast(nn.Module, layer)(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        return attend(query, key, value)
