"""What may be printed, saved or sent of a run's configuration, and how it looks as TOML."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from sfumato.config.run.file import FileConfig
from sfumato.config.run.output.overwriting import OverwritingConfig
from sfumato.config.run.run import Run
from sfumato.config.secrets import ENVIRONMENT


def public_values(run: Run) -> dict[str, Any]:
    """Return the options that differ from their defaults, without secrets and those of one call alone.

    These are `FileConfig` and `OverwritingConfig`. Paths become text and tuples lists, so that the result is
    fit for TOML, JSON and trackers.
    """
    return {
        field.name: _plain(value)
        for field, value in _public(run)
        if value is not None and value != field.default
    }


def all_values(run: Run) -> dict[str, Any]:
    """Return every option that `public_values` may hold with its value, fit for JSON."""
    return {field.name: _plain(value) for field, value in _public(run)}


def _public(run: Run) -> Iterator[tuple[Field[Any], Any]]:
    """Yield the fields that others may see, with their values."""
    for section in run:
        if not isinstance(section, FileConfig | OverwritingConfig):
            for field in fields(section):
                if field.name not in ENVIRONMENT:
                    yield field, getattr(section, field.name)


def to_toml(values: Mapping[str, Any]) -> str:
    """Return flat TOML, one `name = value` a line, of booleans, numbers, text and lists of these."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _toml_float(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return _toml_text(value)
    raise ValueError(f"a {type(value).__name__} has no place in flat TOML: {value!r}")


def _toml_float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)  # nan, inf and -inf are written alike in Python and TOML
    text = repr(value)
    return text if "." in text or "e" in text else f"{text}.0"


def _toml_text(value: str) -> str:
    # JSON's escapes are TOML's, but for DEL and for pairs of surrogates, which ensure_ascii=False avoids.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
