r"""The names of tags as captions have them: expanded, with blanks, replaced.

Lists of tags are written with a separator between them; in replacements, `\,` and `\;` stand for these
characters within a tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sfumato.config.tools.pictures.captioning import TaggingConfig
from sfumato.errors import UserError
from sfumato.tools.captioning.tags.tag_table import CHARACTER, TagTable

_KEPT = 3
"""Characters up to which a tag keeps its underscore: it is an emoticon."""


def written(table: TagTable, options: TaggingConfig) -> list[str]:
    """Return each tag of a table as it is written into captions."""
    names = [
        _expanded(name, options.caption_separator)
        if options.character_tag_expand and category == CHARACTER
        else name
        for name, category in zip(table.names, table.categories, strict=True)
    ]
    if options.remove_underscore:
        names = [name.replace("_", " ") if len(name) > _KEPT else name for name in names]
    replaced = replacements(options.tag_replacement or "")
    return [replaced.get(name, name) for name in names]


def replacements(text: str) -> Mapping[str, str]:
    r"""Return new tags by old ones, read off `old,new;old,new`.

    Raises:
        UserError: an entry is no pair.
    """
    pairs = [re.split(r"(?<!\\),", entry) for entry in re.split(r"(?<!\\);", text) if entry]
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(f"--tag_replacement has {','.join(pair)!r}; write old,new;old,new")
    return {_plain(old): _plain(new) for old, new in pairs}


def listed(text: str, separator: str) -> list[str]:
    """Return the tags of a text, without blanks around them."""
    return [tag for tag in (part.strip() for part in text.split(separator.strip())) if tag]


def moved_to_front(tags: Iterable[str], first: Iterable[str]) -> list[str]:
    """Return tags with some of them in front, where they are found; the last one comes first."""
    ordered = list(tags)
    for tag in first:
        if tag in ordered:
            ordered.remove(tag)
            ordered.insert(0, tag)
    return ordered


def _expanded(name: str, separator: str) -> str:
    """Return `name, work` for `name_(work)`: one entry, as sd-scripts has it."""
    if not name.endswith(")"):
        return name
    character, _, work = name.rpartition("(")
    return character.removesuffix("_") + separator + work.replace(")", "")


def _plain(text: str) -> str:
    return text.replace(r"\,", ",").replace(r"\;", ";").strip()
