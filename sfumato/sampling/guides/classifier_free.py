"""Guidance by prompts: towards the wanted one, away from the unwanted one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.diffusion import guidance
from sfumato.diffusion.samplers import Denoise
from sfumato.sampling.guides.guide import Guide
from sfumato.sampling.request import Request


def guides_for(requests: Sequence[Request], device: torch.device) -> tuple[Guide, ...]:
    """Return what leads the denoiser by the scales of requests that are sampled at once."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device).reshape(-1, 1, 1, 1)

    scales = column([request.cfg_scale for request in requests])
    num_passes = len(requests[0].passes())
    if num_passes == 1:
        return ()
    if num_passes == 2:
        return (classifier_free(scales),)
    return (away_from(scales, column([request.negative_scale or 0.0 for request in requests])),)


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
