"""README.md beside what a run saves: what it is, how it was trained, and what it makes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sfumato.hub.card import MARK, Card, Sample
from sfumato.training.core.events import Ended, ImageMade
from sfumato.training.core.observer import Observer

logger = logging.getLogger(__name__)

FILE = "README.md"


class ModelCard(Observer):
    """Writes a card at the end of a run that saved something; in the first process only.

    Args:
        folder: of all that the run saves.
        card: what is known at the start.
        written: takes the card and its images, each with its name within the folder.
    """

    def __init__(self, folder: Path, card: Card, written: Callable[[Path, str], None]) -> None:
        self._folder, self._card, self._written = folder, card, written
        self._images: dict[int, ImageMade] = {}

    def image(self, event: ImageMade) -> None:
        """Keep the last image of each prompt."""
        self._images[event.index] = event

    def ended(self, event: Ended) -> None:
        """Write the card."""
        path = self._folder / FILE
        if not event.saved:
            return
        if not _is_ours(path):
            logger.warning("%s is not by this program and stays as it is; move it to get a model card", path)
            return
        samples = {image.path: self._sample(image) for _, image in sorted(self._images.items())}
        files = [saved.name for saved in event.saved]
        text = replace(self._card, files=files, samples=[*samples.values()]).text()
        try:
            path.write_text(text, "utf-8")
        except OSError as error:
            logger.warning("the model card %s cannot be written: %s", path, error.strerror)
            return
        logger.info("written: %s", path)
        self._written(path, FILE)
        for image, sample in samples.items():
            self._written(image, sample.place)

    def _sample(self, image: ImageMade) -> Sample:
        return Sample(image.prompt, Path(os.path.relpath(image.path, self._folder)).as_posix())


def _is_ours(path: Path) -> bool:
    """Return whether a card may be written there."""
    return not path.exists() or MARK in path.read_text("utf-8", "replace")
