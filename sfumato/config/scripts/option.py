"""An option of a script, read off one field of a section."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Kind = Literal["str", "int", "float", "bool", "Path", "int_or_float"]


@dataclass(frozen=True)
class Option:
    """One option, read off one field of a section.

    Attributes:
        flags: spellings on the command line; a single one without dashes is a positional argument.
        kind: type of the value, or of each value where `is_list`.
        choices: allowed values, None where everything is allowed.
        newer: values that are allowed besides, which newer versions of a script have; they are not listed.
        default: the section's value, or the one that the script puts in its place.
        count: how many values a list takes: `*` any number, `+` one or more, or so many; `?` makes a
            positional optional.
    """

    section: type
    dest: str
    flags: tuple[str, ...]
    kind: Kind
    default: Any
    choices: tuple[Any, ...] | None = None
    is_list: bool = False
    is_required: bool = False
    count: str | int = "*"
    newer: tuple[Any, ...] = ()

    @property
    def accepted(self) -> tuple[Any, ...] | None:
        """All values that are allowed, None where everything is."""
        return self.choices and (*self.choices, *self.newer)

    @property
    def name(self) -> str:
        """The spelling to use in messages."""
        return self.flags[-1]


def options_of(sections: Iterable[type], overrides: Mapping[str, Any]) -> dict[str, Option]:
    """Return the options of all sections by name, in order; `overrides` replaces defaults."""
    found: dict[str, Option] = {}
    for section in sections:
        hints = get_type_hints(section)
        for field in fields(section):
            name = field.name
            kind, choices, is_list = _read_type(hints[name])
            flags = field.metadata.get("flags", (f"--{name}",))
            required = field.metadata.get("required", False)
            default = None if required else overrides.get(name, field.default)
            choices = field.metadata.get("choices", choices)
            count = field.metadata.get("count", "*")
            found[name] = Option(section, name, flags, kind, default, choices, is_list, required, count)
    return found


def _read_type(hint: Any) -> tuple[Kind, tuple[Any, ...] | None, bool]:
    """Return (kind, choices, is_list) of an annotation such as `tuple[str, ...] | None`."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        named = next(choice for choice in choices if choice is not None)
        return type(named).__name__, choices, False  # type: ignore[return-value]
    if get_origin(hint) in (Union, UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        return ("int_or_float", None, False) if set(members) == {int, float} else _read_type(members[0])
    if get_origin(hint) is tuple:
        return get_args(hint)[0].__name__, None, True
    return hint.__name__, None, False
