"""BLIP (Li et al. 2022, arXiv:2201.12086): a sentence that begins with a prompt, which is cut off again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.config.run.run import Run
from sfumato.config.tools.pictures.captioning import BlipConfig, CaptioningConfig
from sfumato.hub.access import HubAccess, access_for
from sfumato.tools.captioning.describing import describe, files_beside
from sfumato.tools.captioning.sentences import blip_weights, language_models
from sfumato.tools.captioning.sentences.pixel_captioner import PixelCaptioner
from sfumato.tools.captioning.wording import Wording

PROMPT = "a picture of "
_REPETITION = 1.1
"""What makes words less likely that were drawn before, as BLIP's authors have it."""


def caption_with_blip(run: Run) -> None:
    """Write a sentence about every image.

    Raises:
        UserError: there is no model or no image, or a file cannot be read or written.
    """
    blip, options = run[BlipConfig], run[CaptioningConfig]
    model, processor = _loaded(blip.caption_weights, access_for(run))
    prompt = processor.tokenizer([PROMPT], return_tensors="pt").to(model.device)

    def written(pixels: Tensor) -> Tensor:
        return model.generate(
            pixel_values=pixels,
            input_ids=prompt["input_ids"].repeat(len(pixels), 1),
            attention_mask=prompt["attention_mask"].repeat(len(pixels), 1),
            max_length=blip.max_length,
            min_length=blip.min_length,
            **_search(blip),
        )

    captioner = PixelCaptioner(model, processor, written, lambda text: text.removeprefix(PROMPT))
    torch.manual_seed(blip.seed)
    describe(captioner, Wording(options), files_beside(options))


def _loaded(weights: str, access: HubAccess) -> tuple[Any, Any]:
    """Return (model, processor); the address that sd-scripts has as default stands for a model on the Hub."""
    if weights == BlipConfig.caption_weights:
        weights = blip_weights.LARGE
    if weights.lower().endswith(".pth"):
        return blip_weights.load(Path(weights), access)
    return language_models.load(weights, "--caption_weights", access)


def _search(options: BlipConfig) -> dict[str, Any]:
    if options.beam_search:
        return {"do_sample": False, "num_beams": options.num_beams}
    return {"do_sample": True, "top_p": options.top_p, "repetition_penalty": _REPETITION}
