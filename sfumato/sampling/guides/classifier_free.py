"""Guidance by prompts: towards the wanted one, away from the unwanted one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sfumato.diffusion import guidance
from sfumato.diffusion.samplers import Denoise
from sfumato.sampling.guides.guide import Guide
from sfumato.sampling.request import Request


@torch.inference_mode(False)  # or guides beyond these could not follow gradients through them
def guides_for(requests: Sequence[Request], device: torch.device) -> tuple[Guide, ...]:
    """Return what leads the denoiser by the scales of requests that are sampled at once."""

    def column(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), device=device).reshape(-1, 1, 1, 1)

    scales, num_passes = column(request.cfg_scale for request in requests), len(requests[0].passes())
    is_rescaled = any(request.cfg_rescale for request in requests)
    shares = column(request.cfg_rescale or 0.0 for request in requests) if is_rescaled else None
    if num_passes == 1:
        return ()
    if num_passes == 2:
        return (classifier_free(scales, shares),)
    return (away_from(scales, column(request.negative_scale or 0.0 for request in requests), shares),)


def classifier_free(scales: Tensor, shares: Tensor | None = None) -> Guide:
    """Lead away from negative prompts, with both predictions made at once.

    What it guides is asked for 2 B rows, and knows the prompts of the first B and the negative prompts of
    the others.

    Args:
        scales: (B, 1, 1, 1), on the device of the latents; see `diffusion.guidance.classifier_free`.
        shares: as `scales`; see `diffusion.guidance.rescaled`.
    """

    def guide(denoise: Denoise) -> Denoise:
        def lead(x: Tensor, sigma: float) -> Tensor:
            wanted, unwanted = denoise(torch.cat([x, x]), sigma).chunk(2)
            return _rescaled(guidance.classifier_free(wanted, unwanted, scales), wanted, shares)

        return lead

    return guide


def away_from(scales: Tensor, negative_scales: Tensor, shares: Tensor | None = None) -> Guide:
    """Lead away from negative prompts by a scale of their own, with three predictions made at once.

    What it guides is asked for 3 B rows, and knows the prompts of the first B, the negative prompts of the
    next, and no prompt for the others.

    Args:
        scales, negative_scales: (B, 1, 1, 1), on the device of the latents; see `guidance.away_from`.
        shares: as `scales`; see `diffusion.guidance.rescaled`.
    """

    def guide(denoise: Denoise) -> Denoise:
        def lead(x: Tensor, sigma: float) -> Tensor:
            wanted, unwanted, neutral = denoise(torch.cat([x, x, x]), sigma).chunk(3)
            led = guidance.away_from(wanted, neutral, unwanted, scales, negative_scales)
            return _rescaled(led, wanted, shares)

        return lead

    return guide


def _rescaled(led: Tensor, wanted: Tensor, shares: Tensor | None) -> Tensor:
    return led if shares is None else guidance.rescaled(led, wanted, shares)
