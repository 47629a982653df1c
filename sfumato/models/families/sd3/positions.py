"""Where an image lies in the table of positions while a model is trained."""

from __future__ import annotations

import torch

from sfumato.models.families.sd3.network import PATCH, Corner


def random_corner(
    size: tuple[int, int], side: int, rate: float, rng: torch.Generator | None
) -> Corner | None:
    """Draw a place for a batch with that probability, so that all positions are learned.

    Args:
        size: (height, width) of the latents.
        side: patches on each side of the table.
        rate: probability, 0 to 1; nothing is drawn for 0.
        rng: on the processor; None draws nothing.

    Returns:
        None for the middle of the table.
    """
    if rng is None or not rate or torch.rand((), generator=rng).item() >= rate:
        return None
    ends = [max(side - length // PATCH, 0) + 1 for length in size]
    top, left = (int(torch.randint(end, (), generator=rng)) for end in ends)
    return top, left
