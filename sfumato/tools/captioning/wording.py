"""From the parts of a caption, tags or one sentence, to the text of the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sfumato.config.tools.pictures.captioning import CaptioningConfig

Extended = Callable[[Sequence[str], str], Sequence[str]]
"""Makes the parts of a caption of new ones and the text that was there."""


@dataclass(frozen=True)
class Wording:
    """How captions are worded.

    Attributes:
        separator: stands between the parts.
        extended: how the caption that was there is kept; None replaces it.
    """

    options: CaptioningConfig
    separator: str = ", "
    extended: Extended | None = None

    def text(self, parts: Sequence[str], before: str | None) -> str:
        """Return the text of a caption.

        Args:
            before: what the caption was; None if there was none.
        """
        if self.extended is not None and before is not None:
            parts = self.extended(parts, self._within(before))
        text = self.separator.join(self._with_trigger(parts))
        return f"{self.options.text_before}{text}{self.options.text_behind}"

    def _within(self, before: str) -> str:
        """Return a caption without the text around it, which an earlier call may have put there."""
        own = before.strip("\r\n").removeprefix(self.options.text_before)
        return own.removesuffix(self.options.text_behind)

    def _with_trigger(self, parts: Sequence[str]) -> Sequence[str]:
        word = self.options.trigger_word
        begins_with_word = any(re.match(rf"{re.escape(word)}(?!\w)", part) for part in parts[:1])
        return parts if begins_with_word or word in parts or not word else [word, *parts]
