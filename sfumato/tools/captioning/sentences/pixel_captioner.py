"""Models that are shown images of one size, and write a sentence about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class PixelCaptioner:
    """Meets `Captioner`.

    Attributes:
        model: on its device.
        processor: prepares images for it, and turns its tokens into text.
        written: makes tokens (B, L) of pixels (B, 3, H, W).
        kept: what is kept of a sentence.
    """

    model: Any
    processor: Any
    written: Callable[[Tensor], Tensor]
    kept: Callable[[str], str] = str
    fixed_batch: int | None = None

    def prepared(self, image: Image.Image, path: Path) -> Tensor:
        """Return an RGB image as (3, H, W), of the model's size and range."""
        del path
        return self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]

    @torch.inference_mode()
    def captions(self, batch: Sequence[Tensor]) -> list[list[str]]:
        """Return one sentence for each image."""
        tokens = self.written(torch.stack(list(batch)).to(self.model.device))
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [[self.kept(text)] for text in texts]
