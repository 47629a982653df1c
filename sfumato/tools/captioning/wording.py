"""From the parts of a caption, tags or one sentence, to the text of the file."""

from __future__ import annotations

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
            parts = self.extended(parts, before)
        text = self.separator.join(self._with_trigger(parts))
        return f"{self.options.text_before}{text}{self.options.text_behind}"

    def _with_trigger(self, parts: Sequence[str]) -> Sequence[str]:
        word = self.options.trigger_word
        has_word = word in parts or (len(parts) > 0 and parts[0].startswith(word))
        return parts if has_word or not word else [word, *parts]
