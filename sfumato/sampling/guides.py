"""Guides: what stands between a sampler and the model. Each takes a `Denoise` and returns another.

The sampler sees the outermost one alone, so that guides can be combined and samplers know none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor

from sfumato.diffusion import guidance
from sfumato.diffusion.samplers import Denoise

Guide = Callable[[Denoise], Denoise]


def guided(denoise: Denoise, guides: Iterable[Guide]) -> Denoise:
    """Return what a sampler sees: the first guide is next to the model, the last one next to the sampler."""
    return reduce(lambda inner, guide: guide(inner), guides, denoise)


def classifier_free(scales: Tensor) -> Guide:
    """Lead away from negative prompts, with both predictions made at once.

    What it guides is asked for 2 B rows, and knows the prompts of the first B and the negative prompts of
    the others.

    Args:
        scales: (B, 1, 1, 1), on the device of the latents; see `diffusion.guidance.classifier_free`.
    """

    def guide(denoise: Denoise) -> Denoise:
        def lead(x: Tensor, sigma: float) -> Tensor:
            wanted, unwanted = denoise(torch.cat([x, x]), sigma).chunk(2)
            return guidance.classifier_free(wanted, unwanted, scales)

        return lead

    return guide


def away_from(scales: Tensor, negative_scales: Tensor) -> Guide:
    """Lead away from negative prompts by a scale of their own, with three predictions made at once.

    What it guides is asked for 3 B rows, and knows the prompts of the first B, the negative prompts of the
    next, and no prompt for the others.

    Args:
        scales, negative_scales: (B, 1, 1, 1), on the device of the latents; see `guidance.away_from`.
    """

    def guide(denoise: Denoise) -> Denoise:
        def lead(x: Tensor, sigma: float) -> Tensor:
            wanted, unwanted, neutral = denoise(torch.cat([x, x, x]), sigma).chunk(3)
            return guidance.away_from(wanted, neutral, unwanted, scales, negative_scales)

        return lead

    return guide
