"""How deep in a UNet's first half something happens: depths are counted in blocks, or in layers."""

from __future__ import annotations

from typing import Any, cast

from torch import nn


def block_depths(model: nn.Module) -> list[nn.Module]:
    """Return the first module of each block, finest first."""
    return [block.resnets[0] for block in cast(Any, model).down_blocks]


def layer_depths(model: nn.Module) -> list[nn.Module]:
    """Return the first module of each layer: the input, then residual blocks and what shrinks behind them.

    So the published files of Stable Diffusion count their `input_blocks`.
    """
    unet = cast(Any, model)
    blocks = ([*block.resnets, *(block.downsamplers or ())] for block in unet.down_blocks)
    return [unet.conv_in, *(layer for block in blocks for layer in block)]
