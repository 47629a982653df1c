"""JSON as text and in files, with one kind of error for whatever may be wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sfumato.errors import UserError

MOST_LEVELS = 100
"""Of lists and objects in one another: what is nested deeper is no file of this field, and would exhaust the
stack of whoever walks through it or prints it."""


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none, or nested too deep; the message says where.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    require_shallow(value)
    return value


def read_object(path: Path, remedy: str = "download it again") -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        UserError: the file cannot be read, or holds something else; the message ends with the remedy.
    """
    try:
        value = parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object; {remedy}")
    return value


def require_shallow(value: Any) -> None:
    """Raise ValueError if lists and dictionaries are nested deeper than `MOST_LEVELS`."""
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"it is nested more than {MOST_LEVELS} levels deep"


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
