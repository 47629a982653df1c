"""GIT (Wang et al. 2022, arXiv:2205.14100): a sentence, from which writing in the image may be left out."""

from __future__ import annotations

from torch import Tensor

from sfumato.config.run.run import Run
from sfumato.config.tools.pictures.captioning import CaptioningConfig, GitConfig
from sfumato.hub.access import access_for
from sfumato.tools.captioning.describing import describe, files_beside
from sfumato.tools.captioning.sentences import language_models
from sfumato.tools.captioning.sentences.pixel_captioner import PixelCaptioner
from sfumato.tools.captioning.sentences.written_words import without_written_words
from sfumato.tools.captioning.wording import Wording


def caption_with_git(run: Run) -> None:
    """Write a sentence about every image.

    Raises:
        UserError: there is no model or no image, or a file cannot be read or written.
    """
    git, options = run[GitConfig], run[CaptioningConfig]
    model, processor = language_models.load(git.model_id, "--model_id", access_for(run))

    def written(pixels: Tensor) -> Tensor:
        return model.generate(pixel_values=pixels, max_length=git.max_length)

    kept = without_written_words if git.remove_words else str
    captioner = PixelCaptioner(model, processor, written, kept)
    describe(captioner, Wording(options), files_beside(options))
