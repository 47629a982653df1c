"""How much of a caption a text encoder reads, found out with its tokenizer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.models.components import emphasis
from sfumato.models.components.tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenizerReader:
    """What one text encoder takes in.

    Attributes:
        length: the most tokens of a caption that it reads, start and end not counted.
        has_emphasis: whether brackets are emphasis instead of text.
    """

    tokenizer: Tokenizer
    length: int
    has_emphasis: bool = False

    def count(self, captions: Sequence[str]) -> list[int]:
        """Return the number of tokens of each caption, those that are cut off included."""
        return self.tokenizer.count([self._text(caption) for caption in captions])

    def cut_off(self, caption: str) -> str:
        """Return the end of a caption that is not read; "" where all of it is."""
        return self.tokenizer.rest(self._text(caption), self.length)

    def _text(self, caption: str) -> str:
        return "".join(text for text, _ in emphasis.parse(caption)) if self.has_emphasis else caption
