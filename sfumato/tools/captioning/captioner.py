"""The seam between models that describe images and the work around them: files, progress, damaged images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image


class Captioner(Protocol):
    """A model that describes images."""

    @property
    def fixed_batch(self) -> int | None:
        """How many images the model takes together, if it takes no other number."""
        ...

    def prepared(self, image: Image.Image, path: Path) -> Any:
        """Return an RGB image, and what else there is about it, as `captions` takes it.

        Several threads call this at once.
        """
        ...

    def captions(self, batch: Sequence[Any]) -> list[list[str]]:
        """Return the parts of each image's caption: tags, or one sentence."""
        ...
