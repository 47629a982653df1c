"""BLIP (Li et al. 2022, arXiv:2201.12086): a sentence that begins with a prompt, which is cut off again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.config.run.run import Run
from sfumato.config.tools.pictures.captioning import BlipConfig, CaptioningConfig
from sfumato.hub.access import access_for
from sfumato.tools.captioning.describing import describe, files_beside
from sfumato.tools.captioning.sentences import blip_weights, language_models
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
    access = access_for(run)
    if blip.caption_weights.lower().endswith(".pth") and blip.caption_weights != BlipConfig.caption_weights:
        model, processor = blip_weights.load(Path(blip.caption_weights), access)
    else:
        name = blip.caption_weights
        name = blip_weights.LARGE if name == BlipConfig.caption_weights else name
        model, processor = language_models.load(name, "--caption_weights", access)
    torch.manual_seed(blip.seed)
    describe(BlipCaptioner(model, processor, blip), Wording(options), files_beside(options))


@dataclass(frozen=True)
class BlipCaptioner:
    """Meets `Captioner`."""

    model: Any
    processor: Any
    options: BlipConfig
    fixed_batch: int | None = None

    def prepared(self, image: Image.Image, path: Path) -> Tensor:
        """Return (3, H, W), as BLIP sees it."""
        del path
        return language_models.pixels_of(self.processor, image)

    @torch.inference_mode()
    def captions(self, batch: Sequence[Tensor]) -> list[list[str]]:
        """Return one sentence for each image."""
        prompts = self.processor.tokenizer([PROMPT] * len(batch), return_tensors="pt")
        written = self.model.generate(
            pixel_values=torch.stack(list(batch)).to(self.model.device),
            input_ids=prompts["input_ids"].to(self.model.device),
            attention_mask=prompts["attention_mask"].to(self.model.device),
            max_length=self.options.max_length,
            min_length=self.options.min_length,
            **self._search(),
        )
        texts = self.processor.batch_decode(written, skip_special_tokens=True)
        return [[text.removeprefix(PROMPT)] for text in texts]

    def _search(self) -> dict[str, Any]:
        if self.options.beam_search:
            return {"do_sample": False, "num_beams": self.options.num_beams}
        return {"do_sample": True, "top_p": self.options.top_p, "repetition_penalty": _REPETITION}
