"""Blocks of U-Nets as other programs ask sd-scripts' `networks.lora` about them: its helpers, by its names.

Models of two generations count blocks differently; the first argument of most helpers, or the second, says
whether it is the newer one (23 blocks, layers named after checkpoints) or the older (25, named as in
diffusers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.adapters.network.selection import Size
from sfumato.adapters.sd_scripts import blocks
from sfumato.models.interface.layers import BlockList

_OLDER = BlockList(down=12, middle=1, up=12)
_NEWER = BlockList(down=9, middle=3, up=9, before=1, after=1)

_OLDER_NAME = re.compile(
    r"lora_unet_(down|mid|up)_blocks?_(?:(\d+)_)?(attentions|resnets|(?:down|up)samplers)_(\d+)_"
)
_NEWER_NAME = re.compile(
    r"lora_unet_(input|middle|output)_blocks?_(\d+)_|lora_unet_(time|label)_emb|lora_unet_(out)_"
)

Sizes = tuple[list[int], list[float], list[int] | None, list[float] | None]
"""Ranks and alphas by block, and those of wide convolutions, if they are adapted."""


def get_block_index(name: str, is_newer: bool = False, /) -> int:
    """Return the number of the block that a layer belongs to, -1 for none."""
    return _index_of_newer(name) if is_newer else _index_of_older(name)


def parse_block_lr_kwargs(is_newer: bool, arguments: Mapping[str, Any], /) -> list[float] | None:
    """Return each block's rate relative to the denoiser's as network arguments say; None for all alike."""
    given = {key: _text(value) for key, value in arguments.items() if value is not None}
    return list(blocks.read_rates(given, _list_of(is_newer))) or None


def get_block_lr_weight(
    is_newer: bool,
    down_lr_weight: str | Sequence[float] | None,
    mid_lr_weight: str | Sequence[float] | None,
    up_lr_weight: str | Sequence[float] | None,
    zero_threshold: float = 0.0,
    /,
) -> list[float] | None:
    """Return what `parse_block_lr_kwargs` does, of single values."""
    given = {"down_lr_weight": down_lr_weight, "mid_lr_weight": mid_lr_weight, "up_lr_weight": up_lr_weight}
    if all(value is None for value in given.values()):
        return None
    return parse_block_lr_kwargs(is_newer, {**given, "block_lr_zero_threshold": zero_threshold})


def get_block_dims_and_alphas(
    is_newer: bool,
    block_dims: str | Sequence[int] | None,
    block_alphas: str | Sequence[float] | None,
    network_dim: int,
    network_alpha: float,
    conv_block_dims: str | Sequence[int] | None,
    conv_block_alphas: str | Sequence[float] | None,
    conv_dim: int | None,
    conv_alpha: float | None,
    /,
) -> Sizes:
    """Return ranks and alphas of all blocks."""
    given = {
        "block_dims": block_dims,
        "block_alphas": block_alphas,
        "conv_block_dims": conv_block_dims,
        "conv_block_alphas": conv_block_alphas,
        "conv_dim": conv_dim,
        "conv_alpha": conv_alpha,
    }
    texts = {key: _text(value) for key, value in given.items() if value is not None}
    block_list = _list_of(is_newer)
    rule = blocks.read_rule(texts, Size(network_dim, network_alpha), block_list, (1.0,) * len(block_list))
    wide = rule.wide_by_block
    return (
        [size.rank for size in rule.by_block],
        [size.alpha or 0.0 for size in rule.by_block],
        [size.rank for size in wide] if wide else None,
        [size.alpha or 0.0 for size in wide] if wide else None,
    )


def remove_block_dims_and_alphas(
    is_newer: bool,
    block_dims: Sequence[int],
    block_alphas: Sequence[float],
    conv_block_dims: Sequence[int] | None,
    conv_block_alphas: Sequence[float] | None,
    block_lr_weight: Sequence[float] | None,
    /,
) -> Sizes:
    """Return ranks and alphas with rank 0 for blocks that do not learn."""
    learns = [rate != 0 for rate in block_lr_weight or [1.0] * len(_list_of(is_newer))]
    kept = [dim if on else 0 for dim, on in zip(block_dims, learns, strict=True)]
    wide = [dim if on else 0 for dim, on in zip(conv_block_dims or (), learns, strict=False)]
    return kept, list(block_alphas), wide or None, list(conv_block_alphas) if conv_block_alphas else None


def _list_of(is_newer: bool) -> BlockList:
    return _NEWER if is_newer else _OLDER


def _index_of_older(name: str) -> int:
    found = _OLDER_NAME.match(name)
    if found is None:
        return -1
    way, level, what, number = found[1], int(found[2] or 0), found[3], int(found[4])
    if way == "mid":
        return _OLDER.down
    place = 3 * level + (2 if what.endswith("samplers") else number)
    return 1 + place if way == "down" else _OLDER.down + 1 + place


def _index_of_newer(name: str) -> int:
    found = _NEWER_NAME.match(name)
    if found is None:
        return -1
    if found[3] or found[4]:
        return 0 if found[3] else len(_NEWER) - 1
    starts = {"input": 1, "middle": 1 + _NEWER.down, "output": 1 + _NEWER.down + _NEWER.middle}
    return starts[found[1]] + int(found[2])


def _text(value: Any) -> str:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value)
    return ",".join(map(str, value)) + "," * (len(value) == 1)
