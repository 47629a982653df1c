"""TOML as text; what is wrong with a Windows path in double quotes is said with its remedy."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

from sfumato.config.json_text import require_shallow
from sfumato.errors import UserError
from sfumato.installing import command

_LINE = re.compile(r"at line (\d+)")
_ESCAPED = re.compile(r'"[^"]*\\')
_PATH_OF_ESCAPES = re.compile(r'(?m)^[^#\'"\n]*"[A-Za-z]:\\[bfnrt][^"\n]*"')
"""A line whose path is read as something else without a word: `"C:\\new"` holds the end of a line."""
_ADVICE = r"; in double quotes a backslash begins an escape, so write paths in single ones: 'C:\images'"


def parse(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        ValueError: it is none, or nested too deep; the message says where, and what to write if a
            backslash is the reason.
    """
    try:
        tables = _library().loads(text)
        require_shallow(tables)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{error}{_advice(text, str(error))}") from error
    if path := _PATH_OF_ESCAPES.search(text):
        raise ValueError(f"it holds {path[0]}{_ADVICE}")
    return tables


def _advice(text: str, message: str) -> str:
    found = _LINE.search(message)
    lines = text.splitlines()
    number = int(found[1]) if found else 0
    if 0 < number <= len(lines) and _ESCAPED.search(lines[number - 1]):
        return _ADVICE
    return ""


def _library() -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(f"TOML files need the library {name}: run {command(name)}") from None
