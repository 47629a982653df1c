"""Block weights (LBW): how much an adapter's layers count, by the block of the U-Net that they lie in.

A list of 26 numbers is for the text encoders (BASE), IN00 to IN11, MID and OUT00 to OUT11. Shorter lists
leave out blocks without transformers: 17 of Stable Diffusion 1 and 2; 12 of SDXL, whose full list has 20.
Blocks that a list leaves out count fully.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sfumato.errors import UserError

_HALF = 12
"""Blocks of either half in the numbering."""
_MID = _HALF + 1

_LISTED: Mapping[int, tuple[int, ...]] = {
    12: (0, 5, 6, 8, 9, 13, *range(14, 20)),
    17: (0, 2, 3, 5, 6, 8, 9, 13, *range(17, 26)),
    20: (*range(10), 13, *range(14, 23)),
    26: tuple(range(26)),
}
"""For each length of a list, the blocks of its numbers."""

_PER_LEVEL = 3


def weight_of(layer: str, weights: Sequence[float]) -> float:
    """Return how much a layer counts.

    Args:
        layer: its name in files, in either naming.
        weights: a list of one of the known lengths; empty where everything counts fully.
    """
    if not weights:
        return 1.0
    block = block_of(layer)
    listed = _LISTED[len(weights)]
    return weights[listed.index(block)] if block in listed else 1.0


def block_of(layer: str) -> int | None:
    """Return the number of a layer's block in the list of 26, or None if it lies in none."""
    if "text_model_encoder_" in layer:
        return 0
    if "mid_block_" in layer or "middle_block_" in layer:
        return _MID
    if match := re.search(r"(input|output)_blocks_(\d+)_", layer):
        return int(match[2]) + (1 if match[1] == "input" else _MID + 1)
    if match := re.search(
        r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_", layer
    ):
        level, number = _PER_LEVEL * int(match[2]), int(match[4])
        if match[1] == "up":
            return _MID + 1 + level + (_PER_LEVEL - 1 if match[3] == "upsamplers" else number)
        return 1 + (level + _PER_LEVEL if match[3] == "downsamplers" else level + number + 1)
    if re.search(r"_(time_embed|label_emb)_", layer):
        return 1
    return _MID + 1 + 9 if re.search(r"unet_out_", layer) else None


def check_counts(num_models: int, num_lists: int) -> None:
    """Raise UserError unless there is a list for each adapter, or none at all."""
    if num_lists not in (0, num_models):
        raise UserError(f"--lbws has {num_lists} lists for {num_models} --models; give one for each, or none")
