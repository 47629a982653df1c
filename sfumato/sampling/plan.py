"""How one batch is sampled: all that stands between its requests and its latents, put together.

Effects are given a plan and return another, so that they may change any of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from sfumato.diffusion.samplers import OnStep, Sampler
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import Family
from sfumato.sampling.denoiser import Denoiser
from sfumato.sampling.encoding import Text
from sfumato.sampling.guides.guide import Guide, guided
from sfumato.sampling.request import Request
from sfumato.sampling.spaces import Space
from sfumato.sampling.starts.noise import Noise
from sfumato.sampling.starts.start import Start


@dataclass(frozen=True)
class Plan:
    """One batch that is about to be sampled.

    Attributes:
        model: the family's denoiser, on its device.
        requests: alike in `Request.batch_key`; the first speaks for all in what they have in common.
        texts: encoded prompts by prompt: all of `Request.prompts`.
        conditioning: rows of all images for the first of `Request.passes`, then for the second ...
        guides: from the model to the sampler.
    """

    family: Family
    model: nn.Module
    space: Space
    requests: Sequence[Request]
    texts: Mapping[str, Text]
    conditioning: Conditioning
    noise: Noise
    start: Start
    guides: tuple[Guide, ...]
    sampler: Sampler

    def latents(self, on_step: OnStep | None = None) -> Tensor:
        """Sample; return clean latents (B, C, H/8, W/8), float32."""
        request = self.requests[0]
        x, first, revise = self.start(self.space, request, self.noise)
        sigmas = self.space.sigmas(request, first)
        denoise = guided(Denoiser(self.family, self.model, self.space, self.conditioning), self.guides)
        x = self.sampler(denoise, x, sigmas, self.noise.rngs, on_step, revise)
        return self.space.end(x, float(sigmas[-1]))


Effect = Callable[[Plan], AbstractContextManager[Plan]]
"""Enters before a batch is sampled, with its plan, and hands out the plan that is to be carried out.

It may hook the model meanwhile; when it exits, whatever happened, the model is as it was before.
"""
