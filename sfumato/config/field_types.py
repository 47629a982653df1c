"""Whether values that come from a file have the types that a dataclass declares for its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Made = TypeVar("Made")


def made_of(kind: type[Made], said: object) -> Made:
    """Return a dataclass of JSON values, with the lists and tables in them as what its fields stand for.

    Raises:
        TypeError: a table has other names.
        ValueError: a field has a value of another type; the message names it.
    """
    if not isinstance(said, dict):
        raise ValueError(f"{said!r} is no table")
    hints = get_type_hints(kind)
    made = kind(**{name: _revived(value, hints[name]) for name, value in said.items()})
    require_types(made)
    return made


def _revived(value: Any, hint: Any) -> Any:
    """Return a JSON value as the type says: a table as a dataclass, a list as a tuple."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, list):
        return tuple(value)
    records = [option for option in options if isinstance(option, type) and is_dataclass(option)]
    return made_of(records[0], value) if records and isinstance(value, dict) else value


def require_types(made: Any) -> None:
    """Check the fields of a dataclass that was made of values from a file.

    Fields may be of plain types, unions of them, `Mapping[...]`, `tuple[X, ...]`, dataclasses and `Any`.

    Raises:
        ValueError: a field has a value of another type; the message names it.
    """
    hints = get_type_hints(type(made))
    for field in fields(made):
        value = getattr(made, field.name)
        if not _fits(value, hints[field.name]):
            raise ValueError(f"{field.name} is {str(value)[:_MOST_SHOWN]!r}")


_MOST_SHOWN = 40


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if kind is Mapping:
        return isinstance(value, dict) and all(_fits(x, inner[1]) for x in value.values())
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    # A bool is no number here; a whole number stands for any.
    return hint is Any or type(value) is hint or (hint is float and type(value) is int)
