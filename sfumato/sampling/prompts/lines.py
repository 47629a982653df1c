"""Lines of a prompt with options behind it, whatever the options are: `a cat --w 512 --d 1`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence

logger = logging.getLogger(__name__)

BEFORE_A_NAME = re.compile(r"(?:^|\s+)--(?=[A-Za-z])")
"""Options begin with two dashes and a letter."""


def split_line(
    line: str, known: Iterable[str], divider: re.Pattern[str] = BEFORE_A_NAME
) -> tuple[str, list[tuple[str, str]]]:
    """Return a line's prompt, and what stands behind each option by its name in lower case.

    An unknown option is left out, and one with a single dash is text; either is a warning.

    Args:
        known: names of options without dashes.
        divider: what stands before the name of an option.
    """
    names = list(known)
    _name_single_dashes(line, names)
    prompt, *pieces = divider.split(line.strip())
    return prompt.strip(), list(_known(pieces, names))


def _known(pieces: Iterable[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for piece in pieces:
        name, _, value = piece.partition(" ")
        if name.lower() in names:
            yield name.lower(), value
        else:
            logger.warning(
                "prompt option --%s is left out; known here are %s",
                name,
                ", ".join(f"--{letters}" for letters in names),
            )


def _name_single_dashes(line: str, names: Iterable[str]) -> None:
    if found := re.findall(rf"(?:^|\s)-({'|'.join(names)})(?=\s+\S)", line, re.IGNORECASE):
        logger.warning("-%s in a prompt is text; options have two dashes: --%s", found[0], found[0])
