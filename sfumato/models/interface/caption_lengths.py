"""How much of a caption a text encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Vocabulary(Protocol):
    """The tokens of one text encoder."""

    @property
    def vocabulary(self) -> Any:
        """The tokenizer itself, as transformers has it."""
        ...

    def content(self) -> list[int]:
        """Return the ids of all tokens that stand for text."""
        ...

    def framed(self, ids: Sequence[int]) -> list[int]:
        """Return ids between start and end, padded to the encoder's length."""
        ...


class CaptionReader(Protocol):
    """What one text encoder takes in."""

    @property
    def tokenizer(self) -> Vocabulary:
        """The tokens that captions are made into."""
        ...

    @property
    def length(self) -> int:
        """The most tokens of a caption that it reads, start and end not counted."""
        ...

    def count(self, captions: Sequence[str]) -> list[int]:
        """Return the number of tokens of each caption, those that are cut off included."""
        ...

    def cut_off(self, caption: str) -> str:
        """Return the end of a caption that is not read; "" where all of it is."""
        ...
