"""Emphasis in prompts: `(word)` weighs 1.1 times as much, `[word]` 1/1.1, `(word:1.3)` 1.3 times.

Brackets nest and multiply; one that is never closed reaches to the end. A backslash makes a bracket text,
and before anything else it means nothing. A blank in `(word: 1.3)` makes the number text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

STRONGER = 1.1
WEAKER = 1 / 1.1

_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)|:(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\)|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|.)",
    re.DOTALL,
)


def parse(text: str) -> list[tuple[str, float]]:
    """Return the pieces of a prompt in order, each with its weight; neighbours differ in weight."""
    reader = _Reader()
    for match in _TOKEN.finditer(text):
        reader.read(match)
    return reader.pieces()


def sections(text: str) -> list[list[tuple[str, float]]]:
    """Return the pieces of each part of a prompt; `BREAK` stands between the parts, inside brackets too."""
    found: list[list[tuple[str, float]]] = [[]]
    for piece, weight in parse(text):
        first, *others = piece.split("BREAK")
        found[-1].append((first, weight))
        found += [[(other, weight)] for other in others]
    return found


@dataclass
class _Reader:
    """What has been read: pieces with their weights so far, and where open brackets began."""

    texts: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    opened: dict[str, list[int]] = field(default_factory=lambda: {"(": [], "[": []})

    def read(self, match: re.Match[str]) -> None:
        bracket, weight = match["bracket"], match["weight"]
        if bracket in ("(", "["):
            self.opened[bracket].append(len(self.texts))
        elif weight is not None and self.opened["("]:
            self._scale(self.opened["("].pop(), float(weight))
        elif bracket == ")" and self.opened["("]:
            self._scale(self.opened["("].pop(), STRONGER)
        elif bracket == "]" and self.opened["["]:
            self._scale(self.opened["["].pop(), WEAKER)
        else:
            escaped = match["escaped"]
            self.texts.append(match[0] if escaped is None else escaped)
            self.weights.append(1.0)

    def pieces(self) -> list[tuple[str, float]]:
        for kind, factor in (("(", STRONGER), ("[", WEAKER)):
            for start in self.opened[kind]:
                self._scale(start, factor)
        joined: list[tuple[str, float]] = []
        for text, weight in zip(self.texts, self.weights, strict=True):
            if joined and joined[-1][1] == weight:
                text = joined.pop()[0] + text
            joined.append((text, weight))
        return joined or [("", 1.0)]

    def _scale(self, start: int, factor: float) -> None:
        for index in range(start, len(self.weights)):
            self.weights[index] *= factor
