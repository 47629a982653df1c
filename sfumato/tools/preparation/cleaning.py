"""Clean the captions and tags that taggers and captioners write.

Tags lose their underscores, the rating, what another tag says more precisely, and, where several people are
in the image, looks of which nobody knows whose they are. Captions call drawn people simply boys and girls.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from sfumato.config.tools.preparation import CleaningConfig
from sfumato.console import printable
from sfumato.log import counted, progress
from sfumato.tools.outputs import require_writable
from sfumato.tools.preparation import records

logger = logging.getLogger(__name__)

_FACE = "^_^"

_LENGTH = re.compile(r"(?:long|short|medium) hair")
_LOOKS = (
    _LENGTH,
    re.compile(r"(?:bob|hime) cut"),
    re.compile(r"[\w-]+ eyes"),
    re.compile(r"[\w-]+ sleeves|sleeveless"),
    re.compile(
        r"ponytail|twintails|braid|ahoge|sidelocks|two side up|two tails|[\w-]+ braid|(?:[\w-]+ )+bun"
    ),
)
_HAIR = re.compile(r"[\w-]+ hair")

_STYLES = r"(?:anime|cartoon|young)"
_PEOPLE = r"(?:girl|boy|kid|child|couple|character|man|men|people)s?"
_REPLACED = tuple(
    (re.compile(rf"\b{pattern}\b"), word)
    for pattern, word in (
        (r"(?:women|females|ladies|persons)", "girls"),
        (r"(?:woman|female|lady|person)", "girl"),
        (rf"{_STYLES} (?={_STYLES}\b)", ""),
        (rf"{_STYLES} (?={_PEOPLE}\b)", ""),
        (r"girl girl", "girl"),
        (r"girls girls", "girls"),
    )
)


def clean(options: CleaningConfig) -> None:
    """Write a metadata file with all captions and tags cleaned.

    Raises:
        UserError: a file cannot be read or written.
    """
    found = records.read(Path(options.in_json), "IN_JSON")
    require_writable("OUT_JSON", Path(options.out_json))
    lacking: dict[str, list[str]] = {}
    for key, record in progress(found.items(), unit="image", title="cleaning"):
        for kind, cleaned in (("tags", clean_tags), ("caption", clean_caption)):
            text = record.get(kind)
            if not isinstance(text, str):
                lacking.setdefault(kind, []).append(key)
                continue
            record[kind] = cleaned(text)
            if options.debug and record[kind] != text:
                logger.info("%s: %s -> %s", printable(key), printable(text), printable(record[kind]))
    for kind, keys in lacking.items():
        first = printable(keys[0])
        number = counted(len(found), "image")
        logger.warning("%d of %s without %s, the first is %s", len(keys), number, kind, first)
    records.write(Path(options.out_json), found)


def clean_tags(text: str) -> str:
    """Return comma-separated tags without underscores, rating, repetitions and what cannot be told apart."""
    text = _FACE.join(part.replace("_", " ") for part in text.split(_FACE)).partition(", rating")[0]
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    if any("girls" in tag or "boys" in tag for tag in tags):
        tags = _without_looks(tags)
    return ", ".join(tag for tag in tags if not _is_said_better(tag, tags))


def clean_caption(text: str) -> str:
    """Return a caption in which synonyms of boys and girls are replaced until nothing changes."""
    before = None
    while text != before:
        before = text
        for pattern, word in _REPLACED:
            text = pattern.sub(word, text)
    return text


def _without_looks(tags: list[str]) -> list[str]:
    """Return the tags of several people without hair, eyes and sleeves of which there is more than one."""
    for pattern in _LOOKS:
        tags = _without_several(tags, [tag for tag in tags if pattern.fullmatch(tag)])
    # One length of hair says nothing about its colour.
    colours = [tag for tag in tags if _HAIR.fullmatch(tag) and not _LENGTH.fullmatch(tag)]
    return _without_several(tags, colours)


def _without_several(tags: list[str], alike: list[str]) -> list[str]:
    return [tag for tag in tags if tag not in alike] if len(alike) > 1 else tags


def _is_said_better(tag: str, tags: list[str]) -> bool:
    """Whether a tag is one word that a longer tag ends with: `shirt` beside `white shirt`."""
    return " " not in tag and any(other.endswith(f" {tag}") for other in tags)
