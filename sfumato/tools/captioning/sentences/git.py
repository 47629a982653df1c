"""GIT (Wang et al. 2022, arXiv:2205.14100): a sentence, from which writing in the image may be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.config.run.run import Run
from sfumato.config.tools.pictures.captioning import CaptioningConfig, GitConfig
from sfumato.hub.access import access_for
from sfumato.tools.captioning.describing import describe, files_beside
from sfumato.tools.captioning.sentences import language_models
from sfumato.tools.captioning.sentences.written_words import without_written_words
from sfumato.tools.captioning.wording import Wording


def caption_with_git(run: Run) -> None:
    """Write a sentence about every image.

    Raises:
        UserError: there is no model or no image, or a file cannot be read or written.
    """
    git, options = run[GitConfig], run[CaptioningConfig]
    model, processor = language_models.load(git.model_id, "--model_id", access_for(run))
    describe(GitCaptioner(model, processor, git), Wording(options), files_beside(options))


@dataclass(frozen=True)
class GitCaptioner:
    """Meets `Captioner`."""

    model: Any
    processor: Any
    options: GitConfig
    fixed_batch: int | None = None

    def prepared(self, image: Image.Image, path: Path) -> Tensor:
        """Return (3, H, W), as GIT sees it."""
        del path
        return language_models.pixels_of(self.processor, image)

    @torch.inference_mode()
    def captions(self, batch: Sequence[Tensor]) -> list[list[str]]:
        """Return one sentence for each image."""
        pixels = torch.stack(list(batch)).to(self.model.device)
        written = self.model.generate(pixel_values=pixels, max_length=self.options.max_length)
        texts = self.processor.batch_decode(written, skip_special_tokens=True)
        return [[without_written_words(text) if self.options.remove_words else text] for text in texts]
