"""Positions on a line as vectors of sines and cosines (Vaswani et al. 2017, section 3.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(positions: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Return (B, width) float32: cosines, then sines, of positions (B,) at geometric frequencies."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=positions.device)
    frequencies = torch.exp(-math.log(max_period) / half * steps)
    angles = positions.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
