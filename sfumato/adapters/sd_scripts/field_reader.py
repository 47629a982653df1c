"""`--network_args` of a kind that no module of sd-scripts is for, read by the fields of its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args, get_type_hints

from sfumato.adapters.layers.kinds import Kind
from sfumato.adapters.sd_scripts import argument_values
from sfumato.adapters.sd_scripts.network_args import Given, KindReader

_BY_RULE = ("rank", "alpha")
"""Fields that are told by other options, layer by layer."""

_READERS: Mapping[type, tuple[Callable[[str], Any], str]] = {
    bool: (argument_values.to_bool, "True or False"),
    int: (int, "a whole number"),
    float: (argument_values.to_number, "a number"),
    str: (str, "a text"),
}
"""For each type of field, how a text is read, and what to give."""


def reader_for(kind: Kind) -> KindReader:
    """Return what reads the arguments of a kind.

    Raises:
        ValueError: a field of the kind's arguments is of a type that no text can be read as.
    """
    types = {name: _plain(kind, name, told) for name, told in get_type_hints(kind.arguments).items()}
    own = [field.name for field in dataclasses.fields(kind.arguments) if field.name not in _BY_RULE]
    return KindReader(kind, partial(_read, kind, {name: types[name] for name in own}), tuple(own))


def _plain(kind: Kind, name: str, told: Any) -> type:
    """Return the type of a field without `| None`."""
    found = [each for each in get_args(told) or (told,) if each in _READERS]
    if len(found) != 1:
        raise ValueError(f"{kind.name}: the argument {name} is of type {told}; use int, float, bool or str")
    return found[0]


def _read(kind: Kind, types: Mapping[str, type], given: Given) -> Any:
    read = {key: argument_values.read(given, key, *_READERS[types[key]]) for key in types}
    return kind.arguments(**{key: value for key, value in read.items() if value is not None})
