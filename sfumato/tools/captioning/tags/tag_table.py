"""The tags that a tagger knows, in the order of its outputs, each with its category."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.config import json_text
from sfumato.errors import UserError

RATING, GENERAL, CHARACTER, QUALITY = "Rating", "General", "Character", "Quality"

_OF_NUMBERS = {"9": RATING, "0": GENERAL, "4": CHARACTER}
"""Categories by their numbers on Danbooru; taggers with such a table know no others."""


@dataclass(frozen=True)
class TagTable:
    """What each output of a tagger stands for.

    Attributes:
        names: one for each output; where there is none, the output is not used.
        categories: of these names.
        has_logits: outputs are logits, and tags are listed by probability; otherwise outputs are
            probabilities, and general tags come before characters, in the order of the outputs.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    has_logits: bool = False

    def of(self, category: str) -> list[int]:
        """Return the outputs of a category."""
        return [at for at, found in enumerate(self.categories) if found == category]


def read(path: Path) -> TagTable:
    """Read `selected_tags.csv` or `tag_mapping.json`.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch the tagger again") from error
    try:
        return _of_csv(text) if path.suffix == ".csv" else _of_mapping(json_text.parse(text))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no table of tags: {error!r}; fetch the tagger again") from error


def _of_csv(text: str) -> TagTable:
    """Read lines of tag_id,name,category,count."""
    rows = list(csv.DictReader(text.splitlines()))
    categories = tuple(_OF_NUMBERS.get(row["category"], "") for row in rows)
    if not any(categories):
        raise ValueError("it names no tags")
    return TagTable(tuple(row["name"] for row in rows), categories)


def _of_mapping(mapping: Any) -> TagTable:
    """Read tags by the numbers of outputs, each with its category or with a second table of these."""
    if "idx_to_tag" in mapping:
        names = {int(number): name for number, name in mapping["idx_to_tag"].items()}
        categories = {number: mapping["tag_to_category"][name] for number, name in names.items()}
    else:
        names = {int(number): row["tag"] for number, row in mapping.items()}
        categories = {int(number): row["category"] for number, row in mapping.items()}
    outputs = range(max(names) + 1)
    return TagTable(
        tuple(str(names.get(at, "")) for at in outputs),
        tuple(str(categories.get(at, "")) for at in outputs),
        has_logits=True,
    )
