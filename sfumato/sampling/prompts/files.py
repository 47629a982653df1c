"""Prompt files, as sd-scripts reads them.

One is .txt (a line per image; blank lines and lines that begin with # are skipped), .toml (a table `prompt`
and a list `prompt.subset`, each merged over it) or .json (a list of lines or of objects).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfumato.config import json_text, toml_text
from sfumato.errors import UserError
from sfumato.sampling.prompts.prompt_options import PromptOptions, parse_line, parse_table


def read_prompts(path: Path) -> list[PromptOptions]:
    """Read a prompt file, which may hold none; its suffix decides how.

    Raises:
        UserError: the file is missing, has another suffix or cannot be read.
    """
    readers: dict[str, Callable[[str], list[PromptOptions]]] = {
        ".txt": _from_lines,
        ".toml": _from_toml,
        ".json": _from_json,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"prompt file {path} ends in '{path.suffix}'; use one of {', '.join(readers)}")
    try:
        return reader(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"prompt file {path} cannot be read: {error.strerror}; check the path") from None
    except ValueError as error:
        raise UserError(f"prompt file {path} is not valid: {str(error).splitlines()[0]}; mend it") from None
    except UserError as error:
        raise UserError(f"prompt file {path}: {error}") from None


def prompt_lines(text: str) -> list[str]:
    """Return the lines of a text file that are prompts: those that are not blank and begin with no #."""
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _from_lines(text: str) -> list[PromptOptions]:
    return [parse_line(line) for line in prompt_lines(text)]


def _from_toml(text: str) -> list[PromptOptions]:
    shared = dict(_table(toml_text.parse(text).get("prompt", {}), "[prompt]"))
    subsets = shared.pop("subset", [{}] if shared else [])
    if not isinstance(subsets, list):
        raise UserError(f"prompt.subset is {subsets!r}; write it with double brackets, as [[prompt.subset]]")
    return [parse_table({**shared, **_table(subset, "[[prompt.subset]]")}) for subset in subsets]


def _from_json(text: str) -> list[PromptOptions]:
    items = json_text.parse(text)
    if not isinstance(items, list):
        raise UserError("the JSON is no list; put the prompts between [ and ]")
    return [
        parse_line(item) if isinstance(item, str) else parse_table(_table(item, "entry")) for item in items
    ]


def _table(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is {value!r}; write a table of names and values")
    return value
