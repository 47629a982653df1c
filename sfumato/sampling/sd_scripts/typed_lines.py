"""Prompt lines that are typed in, and a window that shows what became of them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from sfumato import installing

logger = logging.getLogger(__name__)

_MOST_CHARACTERS = 128
"""Of a prompt in a window's title."""


def typed_lines() -> Iterator[str]:
    """Yield each line that holds a prompt, until the end of the input; earlier ones come back with the arrow.

    Ctrl-C while a line is typed ends the input, too.
    """
    try:
        importlib.import_module("readline")  # which keeps a history as soon as it is there
    except ImportError:  # Windows has another one of its own
        logger.debug("no readline: the console's own history is used")
    while True:
        try:
            line = input("Type prompt: ")
        except (EOFError, OSError, KeyboardInterrupt):
            return
        if line.strip().partition("--")[0].strip():
            yield line


class PreviewWindow:
    """Shows images until a key is pressed; without OpenCV it says so once."""

    def __init__(self) -> None:
        self._library: Any = None
        try:
            self._library = importlib.import_module("cv2")
        except ImportError:
            logger.warning(
                "images are not shown, as OpenCV is missing: run %s", installing.command("opencv-python")
            )

    def show(self, image: Image.Image, prompt: str) -> None:
        """Show one image under its prompt, and wait for a key."""
        if self._library is None:
            return
        title = prompt[:_MOST_CHARACTERS]
        try:
            self._library.imshow(title, np.asarray(image)[:, :, ::-1])
            self._library.waitKey()
            self._library.destroyAllWindows()
        except self._library.error as error:  # a machine without a screen
            logger.warning("images are not shown: %s", " ".join(str(error).split())[:200])
            self._library = None
