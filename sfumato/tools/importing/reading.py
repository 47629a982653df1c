"""Files of other trainers as they lie on the disk: JSON, YAML, and shell variables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sfumato.config import json_text
from sfumato.errors import UserError


def read(path: Path) -> Any:
    """Return the content of a file.

    Raises:
        UserError: it cannot be read, or is in none of these formats.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a file of another trainer") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        return _content(path, text)
    except RecursionError:
        raise UserError(f"{path} is damaged: it is nested too deep") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def settings(path: Path) -> Mapping[str, Any]:
    """Return the content of a file that holds settings by name."""
    content = read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; name a file of another trainer")
    return content


def beside(name: str, file: Path) -> Path:
    """Return where a file lies that another one names: from here, or from its folder."""
    path = Path(name)
    return path if path.exists() else file.parent / path


def _content(path: Path, text: str) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return json_text.parse(text)
    if suffix in (".yaml", ".yml"):
        return yaml.safe_load(text)
    if suffix == ".env":
        return dict(_variable(line) for line in text.splitlines() if "=" in line.partition("#")[0])
    raise UserError(f"{path} ends in {suffix or 'nothing'}; it must be .json, .yaml, .yml or .env")


def _variable(line: str) -> tuple[str, str]:
    """Return name and value of a line `export NAME='value'  # remark`."""
    name, _, value = line.strip().removeprefix("export ").partition("=")
    return name.strip(), " ".join(shlex.split(value, comments=True))
