"""The noise levels that Stable Diffusion 3 is trained at and sampled at (Esser et al. 2024, section 3).

Trainers drew them in two ways. In 2024 a number u in [0, 1] was an index into a table from much noise to
little, shifted by 3; since 2026 it is the noise level itself, shifted by what the user says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.diffusion.schedules import NUM_TIMESTEPS, flow_table, shift
from sfumato.diffusion.timesteps import restrict

SHIFT = 3.0
"""Of sampling, and of training as it was in 2024."""


def levels_2024(positions: Tensor, low: float, high: float) -> Tensor:
    """Return sigma, (B,), of positions (B,) in [0, 1] in the table of noise levels; 0 is the noisiest.

    Args:
        low, high: levels are squeezed into this range.
    """
    # `mode` reaches 1.0 itself, one past the last entry of the table.
    indices = (positions * NUM_TIMESTEPS).long().clamp(0, NUM_TIMESTEPS - 1)
    return restrict(flow_table(SHIFT)[indices], low, high)


def levels_2026(positions: Tensor, low: float, high: float, *, factor: float) -> Tensor:
    """Return sigma, (B,), of positions (B,) in [0, 1], shifted; 1 is the noisiest.

    Timesteps are whole, so that the least level is 0.

    Args:
        low, high: range of the levels.
        factor: of the shift.
    """
    first, last = round(low * NUM_TIMESTEPS), round(high * NUM_TIMESTEPS)
    steps = (shift(positions, factor) * (last - first) + first).floor().clamp(first, last)
    return steps / NUM_TIMESTEPS


def sampling_sigmas(num_steps: int) -> Tensor:
    """Return (num_steps + 1,) noise levels from 1 to 0: evenly spaced timesteps, then shifted."""
    least = float(shift(torch.tensor(1 / NUM_TIMESTEPS), SHIFT))
    levels = shift(torch.linspace(1, least, num_steps), SHIFT)
    return torch.cat([levels, levels.new_zeros(1)])
