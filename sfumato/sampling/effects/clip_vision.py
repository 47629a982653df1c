"""An image in place of a text's summary: SDXL's second encoder has a sibling that sees.

For programs: no option of a script asks for it yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.sampling.plan import Effect, Plan

REPOSITORY = "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
"""Whose embeddings of images lie beside those of texts that the model knows."""


def clip_vision(embedding: Tensor, strength: float) -> Effect:
    """Return the effect that tells a model what an image shows, instead of what the prompt sums up to.

    Negative prompts keep their summary.

    Args:
        embedding: (1, P) or (B, P), of the image.
        strength: what it is multiplied by.
    """

    @contextmanager
    def effect(plan: Plan) -> Iterator[Plan]:
        texts = {
            name: _with_image(text, embedding * strength, len(plan.requests)) if text.dim() == 2 else text
            for name, text in plan.conditioning.text.items()
        }
        if all(text.dim() != 2 for text in texts.values()):
            raise UserError("--clip_vision_strength: this model is told no summary of a text; leave it out")
        yield replace(plan, conditioning=replace(plan.conditioning, text=texts))

    return effect


def _with_image(summaries: Tensor, embedding: Tensor, num_images: int) -> Tensor:
    if embedding.shape[-1] != summaries.shape[-1]:
        raise UserError(
            f"--clip_vision_strength: the image is told in {embedding.shape[-1]} numbers, a text in "
            f"{summaries.shape[-1]}; the vision model is another than {REPOSITORY}"
        )
    shown = embedding.expand(num_images, -1).to(summaries.device, summaries.dtype)
    return torch.cat([shown, summaries[num_images:]])
