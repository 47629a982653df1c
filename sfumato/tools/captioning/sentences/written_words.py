"""Leave out of a sentence what it says of writing in the image, which GIT mostly gets wrong."""

from __future__ import annotations

import re

_WORDS = r'(?:"[^"]*"|\w+)'
_QUOTED = r"(?:'(?: ?i'm)?[^']*'|\w+)"
_PLACE = r"(?: ?(?:is )?(?:on|in) (?:(?:the|her|their|him) )?\w+)?"
_SAYING = "(?:with a sign )?that says ?"

_PHRASES = tuple(
    re.compile(phrase)
    for phrase in (
        rf"(?:has|with|and) the (?:words?|letters?|name) {_WORDS}{_PLACE}",
        rf"{_SAYING}{_WORDS}(?: ?on it)?",
        rf"{_SAYING}{_QUOTED}(?: ?on it)?",
        r"with the number \d+ on (?:it|\w+ \w+)",
        r'with the words "',
        r"word \w+ on it",
        r"""that says'the word "(?: on it)?""",
    )
)
"""In this order: what the first ones leave of a phrase, the last ones find."""


def without_written_words(sentence: str) -> str:
    """Return a sentence without such phrases; blanks around them stay."""
    for phrase in _PHRASES:
        sentence = phrase.sub("", sentence)
    return sentence
