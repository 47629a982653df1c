"""What a ControlNet adds inside a UNet, as entries of `Conditioning.control`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_DOWN, _MIDDLE = "residual{}", "residual_middle"


def named(down: Sequence[Tensor], middle: Tensor) -> dict[str, Tensor]:
    """Return a ControlNet's outputs by their names.

    Args:
        down: what is added to each output of the first half that the second half is handed, in order.
        middle: what is added between the halves.
    """
    return {**{_DOWN.format(number): tensor for number, tensor in enumerate(down)}, _MIDDLE: middle}


def arguments(control: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments by which diffusers' UNets are handed residuals; none where there are none."""
    if _MIDDLE not in control:
        return {}
    num_down = sum(_DOWN.format(number) in control for number in range(len(control)))
    return {
        "down_block_additional_residuals": [control[_DOWN.format(i)].to(dtype) for i in range(num_down)],
        "mid_block_additional_residual": control[_MIDDLE].to(dtype),
    }
