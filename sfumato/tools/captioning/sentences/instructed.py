"""Vision-language models: they are shown an image, told what to write, and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from sfumato.config.run.run import Run
from sfumato.config.tools.pictures.captioning import CaptioningConfig, InstructedConfig
from sfumato.data.captions import caption_files
from sfumato.data.captions.caption_files import UnreadableCaptionError
from sfumato.errors import guest_code
from sfumato.hub.access import access_for
from sfumato.tools.captioning.describing import describe, files_beside
from sfumato.tools.captioning.sentences import language_models
from sfumato.tools.captioning.wording import Wording

_DTYPES = {"auto": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_PRESENT = "{caption}"
_NOT_TAKEN, _REMEDY = "--model does not take images with a prompt", "name another model"


def caption_as_told(run: Run) -> None:
    """Write about every image what the model is told to write.

    Raises:
        UserError: there is no model or no image, or a file cannot be read or written.
    """
    told, options = run[InstructedConfig], run[CaptioningConfig]
    model, processor = language_models.load(told.model, "--model", access_for(run), _DTYPES[told.dtype])
    processor.tokenizer.padding_side = "left"  # answers begin where prompts end
    torch.manual_seed(told.seed)
    captioner = InstructedCaptioner(model, processor, told, options.suffix)
    describe(captioner, Wording(options), files_beside(options))


class Question(NamedTuple):
    """An image, and what the model is told about it."""

    image: Image.Image
    text: str


@dataclass(frozen=True)
class InstructedCaptioner:
    """Meets `Captioner`.

    Attributes:
        suffix: of the caption files, for prompts that quote them.
    """

    model: Any
    processor: Any
    options: InstructedConfig
    suffix: str
    fixed_batch: int | None = None

    def prepared(self, image: Image.Image, path: Path) -> Question:
        """Return the image with its prompt, in the form that the model was taught."""
        text = self.options.prompt
        if _PRESENT in text:
            text = text.replace(_PRESENT, _caption(path.with_name(path.stem + self.suffix)))
        return Question(image, self._as_taught(text))

    @torch.inference_mode()
    def captions(self, batch: Sequence[Question]) -> list[list[str]]:
        """Return one answer for each image."""
        with guest_code(_NOT_TAKEN, _REMEDY):
            inputs = self.processor(
                images=self._images(batch),
                text=[question.text for question in batch],
                padding=True,
                return_tensors="pt",
            ).to(self.model.device, self.model.dtype)
            written = self.model.generate(**inputs, **self._search())
        if not self.model.config.is_encoder_decoder:
            written = written[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(written, skip_special_tokens=True)
        return [[" ".join(text.split())] for text in texts]  # training reads one line

    def _images(self, batch: Sequence[Question]) -> list[Any]:
        """Return the images, each in a list of its own where models take several with one prompt."""
        images = [question.image for question in batch]
        return [[image] for image in images] if self.processor.chat_template else images

    def _as_taught(self, text: str) -> str:
        if not self.processor.chat_template:
            return text
        asked = [{"type": "image"}, {"type": "text", "text": text}]
        with guest_code(_NOT_TAKEN, _REMEDY):
            return self.processor.apply_chat_template(
                [{"role": "user", "content": asked}], add_generation_prompt=True, tokenize=False
            )

    def _search(self) -> dict[str, Any]:
        length = {"max_new_tokens": self.options.max_new_tokens}
        if not self.options.temperature:
            return {**length, "do_sample": False}
        return {**length, "do_sample": True, "temperature": self.options.temperature}


def _caption(path: Path) -> str:
    """Return the caption in a file; empty where there is none that can be read."""
    if not path.exists():
        return ""
    try:
        return caption_files.read(str(path)).caption()
    except UnreadableCaptionError:
        return ""
