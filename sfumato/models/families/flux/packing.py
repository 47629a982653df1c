"""Latents as the transformer sees them: one token per 2 x 2 patch, each with its place."""

from __future__ import annotations

import torch
from torch import Tensor

PATCH = 2


def pack(latents: Tensor) -> Tensor:
    """Fold each patch into one token: (B, C, H, W) to (B, H/2 * W/2, 4 C), channel by channel."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack` for latents of that height and width."""
    patches = tokens.unflatten(1, (height // PATCH, width // PATCH)).unflatten(3, (-1, PATCH, PATCH))
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], -1, height, width)


def image_ids(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return (B, H/2 * W/2, 3): (0, row, column) of each token of latents of that height and width."""
    rows = torch.arange(height // PATCH, device=device, dtype=torch.float32)
    columns = torch.arange(width // PATCH, device=device, dtype=torch.float32)
    ids = torch.cartesian_prod(torch.zeros(1, device=device), rows, columns)
    return ids.expand(batch, -1, -1)
