"""Transformers of diffusers' UNets between images with channels last, whose pixels lie as tokens do.

There an image is a sequence of tokens and a sequence an image, without a copy. diffusers makes an image
with channels first of each transformer's result, and with that every layer up to the next one, forward and
backward, has to reconcile two layouts.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_2d import Transformer2DModel


def keep_layout(model: nn.Module) -> None:
    """Let the transformers of a UNet hand on the layout of the images that they get."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    for layer in model.modules():
        if isinstance(layer, Transformer2DModel):
            cast(Any, layer).forward = partial(_forward, layer)


def _forward(
    layer: Transformer2DModel,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    return_dict: bool = True,
    **others: Any,
) -> Any:
    """Return what `layer` makes of images (B, C, H, W) and texts (B, S, W'); diffusers chose the names.

    Args:
        return_dict, others: False and None in a UNet without masks; else `layer` computes as built.
    """
    if return_dict or any(value is not None for value in others.values()):
        return type(layer).forward(
            layer, hidden_states, encoder_hidden_states, return_dict=return_dict, **others
        )
    own: Any = layer
    x = own.norm(hidden_states)
    x = own.proj_in(_tokens(x)) if own.use_linear_projection else _tokens(own.proj_in(x))
    for block in own.transformer_blocks:
        x = block(x, encoder_hidden_states=encoder_hidden_states)
    size = hidden_states.shape[2:]
    x = _image(own.proj_out(x), size) if own.use_linear_projection else own.proj_out(_image(x, size))
    return (x + hidden_states,)


def _tokens(x: Tensor) -> Tensor:
    """Return (B, H W, C) of an image (B, C, H, W): a view, if its channels lie last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(x: Tensor, size: torch.Size) -> Tensor:
    """Return (B, C, H, W), channels last, of tokens (B, H W, C)."""
    return x.unflatten(1, size).permute(0, 3, 1, 2)
