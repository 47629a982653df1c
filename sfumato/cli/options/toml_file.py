"""Options from a TOML file, read with the tolerance that front-ends need.

They send switches as 0 and 1, whole numbers as floats or text, lists as text, and values that their option
does not take (`sfumato.cli.options.tolerance`). What cannot be read is handed back: it may not matter.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sfumato.cli.options.flags import WANTED, read_text
from sfumato.cli.options.tolerance import LOWER_CASE, is_not_given, meaning
from sfumato.config import toml_text
from sfumato.config.scripts.option import Option
from sfumato.config.secrets import ENVIRONMENT
from sfumato.errors import UserError


@dataclass(frozen=True)
class FileOptions:
    """What a configuration file says.

    Attributes:
        values: of the script's options, by name; those that count as not given are left out.
        stray: keys that are no option of the script, in order.
        notes: what to tell about values that are read as others, by option.
        unread: why values cannot be read, by option.
        source: the file, for messages.
    """

    values: dict[str, Any]
    stray: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    source: str = field(default="", compare=False)

    def without(self, given: Mapping[str, Any]) -> "FileOptions":
        """Return the same but for what the command line says anyway."""
        values, notes, unread = (
            {name: said for name, said in table.items() if name not in given}
            for table in (self.values, self.notes, self.unread)
        )
        return replace(self, values=values, notes=notes, unread=unread)


def toml_path(config_file: str) -> Path:
    """Return the path of a configuration file whose suffix may have been left out."""
    return Path(config_file if config_file.endswith(".toml") else f"{config_file}.toml")


def read_options(path: Path, options: Mapping[str, Option]) -> FileOptions:
    """Read a configuration file.

    Raises:
        UserError: the file cannot be read.
    """
    return as_options(read_table(path), options, str(path))


def read_table(path: Path) -> dict[str, Any]:
    """Return what a configuration file says, as it says it, with its tables dissolved.

    Raises:
        UserError: the file cannot be read.
    """
    content = _load(path)
    if isinstance(content.get("datasets"), list) and content.keys() <= {"general", "datasets"}:
        raise UserError(f"--config_file {path} describes data sets; give it as --dataset_config")
    return flatten(content)


def as_options(table: Mapping[str, Any], options: Mapping[str, Option], source: str) -> FileOptions:
    """Read the values of a configuration file as its options want them.

    Args:
        source: the file, or whoever gave the values, for messages.
    """
    values: dict[str, Any] = {}
    notes: dict[str, str] = {}
    unread: dict[str, str] = {}
    for name, value in table.items():
        if name not in options or is_not_given(options[name], value):
            continue
        try:
            values[name], note = _read(options[name], value)
        except ValueError as error:
            shown = "it cannot be read" if name in ENVIRONMENT else str(error)
            unread[name] = f"{source}: {name}: {shown}"
            continue
        if note:
            notes[name] = f"{source}: {name}: {note}"
    stray = tuple(name for name in table if name not in options)
    return FileOptions(values, stray, notes, unread, source)


def flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    """Dissolve tables one level deep: their names mean nothing, and a later key replaces an earlier one."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.is_fifo():
            raise UserError(f"--config_file {path} is a pipe; name a file")
        return toml_text.parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"--config_file {path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"--config_file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--config_file {path}: not UTF-8 text; save it in that encoding") from None
    except ValueError as error:
        raise UserError(f"--config_file {path} is not TOML: {error}") from None


def _read(option: Option, value: Any) -> tuple[Any, str]:
    """Return a TOML value as the option wants it, and what to tell about it; a list takes a single value."""
    if option.is_list:
        return tuple(_convert(option, item) for item in _items(option, value)), ""
    if isinstance(value, str | int | float) and option.choices and not isinstance(value, bool):
        return _choose(option, value)
    return _convert(option, value), ""


def _items(option: Option, value: Any) -> list[Any]:
    if isinstance(value, str):
        value = _listed(option, value)
    items = value if isinstance(value, list) else [value]
    return [item for item in items if item != ""]


def _listed(option: Option, text: str) -> Any:
    """Return the items of a list that is written as text: as Python writes one, or numbers in a row."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise ValueError(f"{text!r} is no list that Python or TOML would write") from None
    return text if option.kind == "str" else text.replace(",", " ").split()


def _choose(option: Option, value: str | int | float) -> tuple[Any, str]:
    """Return the choice that a value is, or means."""
    text = _without_fraction(_as_text(value)) if option.kind == "int" else _as_text(value)
    choices = {str(choice): choice for choice in option.accepted or () if choice is not None}
    if text in choices:
        return choices[text], ""
    meant = meaning(option, text)
    if meant is None:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
    chosen = option.default if meant.value is None else meant.value
    return chosen, f"{value} is read as {chosen}: {meant.reason}" if meant.is_told else ""


def _convert(option: Option, value: Any) -> Any:
    if option.kind == "bool":
        return _convert_switch(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{_shown(value)} is not {WANTED[option.kind]}")
    text = _as_text(value)
    if option.kind == "int":
        text = _without_fraction(text)
    return read_text(option.kind, text.lower() if option.dest in LOWER_CASE else text)


def _convert_switch(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower(), value)
    if value not in (0, 1) or isinstance(value, str):
        raise ValueError(f"{value!r} is not {WANTED['bool']}")
    return bool(value)


def _without_fraction(text: str) -> str:
    """Return a whole number that is written as a fraction, `64.0`, as one; any other text as it is."""
    if text.lstrip("+-").isdigit():
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def _as_text(value: str | int | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
