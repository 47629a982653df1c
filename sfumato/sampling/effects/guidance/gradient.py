"""Guides that follow the gradient of a loss on the image that a step points to.

Dhariwal and Nichol 2021 (arXiv:2105.05233), algorithm 2, in terms of clean latents: by Tweedie's formula, a
change of the score by g changes these by `sigma^2 g`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.diffusion.samplers import Denoise
from sfumato.errors import UserError
from sfumato.models.interface.family import Prediction
from sfumato.sampling.guides.guide import Guide
from sfumato.sampling.plan import Effect, Plan

Loss = Callable[[Tensor], Tensor]
"""`loss(pixels) -> (B,)`: how far images, (B, 3, H, W) in about [-1, 1], are from what is wanted."""


def guidance(loss_of: Callable[[Plan], Loss], decode: Callable[[Tensor], Tensor]) -> Effect:
    """Return the effect that leads images by a loss; see `following`.

    Args:
        loss_of: makes the loss of a batch.
        decode: pixels of latents, by an autoencoder that stays on the device.
    """

    @contextmanager
    def effect(plan: Plan) -> Iterator[Plan]:
        if plan.family.prediction is Prediction.FLOW:
            raise UserError("guidance by another network is for models that predict noise or velocity")
        yield replace(plan, guides=(*plan.guides, following(loss_of(plan), decode)))

    return effect


def following(loss: Loss, decode: Callable[[Tensor], Tensor]) -> Guide:
    """Lead discrete-time models to images of a smaller loss.

    Gradients go through the model, and take the memory of a training step.

    Args:
        decode: pixels (B, 3, H, W) of scaled latents (B, C, H/8, W/8).
    """

    def guide(denoise: Denoise) -> Denoise:
        def lead(x: Tensor, sigma: float) -> Tensor:
            # Sampling is done in inference mode, whose tensors cannot be part of a gradient.
            with torch.inference_mode(False), torch.enable_grad():
                start = x.detach().clone().requires_grad_()
                clean = denoise(start, sigma)
                total = loss(decode(seen(clean, start, sigma))).sum()
                (gradient,) = torch.autograd.grad(total, start)
            return clean.detach() - sigma**2 * gradient

        return lead

    return guide


def seen(clean: Tensor, x: Tensor, sigma: float) -> Tensor:
    """Return latents to decode: the clean ones, and towards the end more and more what there is already.

    The share of the clean ones is `sqrt(1 - a)`, where `a = 1 / (1 + sigma^2)` is the part of the signal.
    """
    kept = 1 / (1 + sigma**2)
    share = (1 - kept) ** 0.5
    return share * clean + (1 - share) * kept**0.5 * x
