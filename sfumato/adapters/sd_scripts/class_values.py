"""What others' modules keep at their classes, and how to forget it between two networks.

Some set class attributes while they build a network (LyCORIS: which layers a preset adapts), so that a second
network in the same process would inherit what the first was told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from types import ModuleType
from typing import Any

_PLAIN = (bool, int, float, str, list, tuple, dict, set, type(None))


def reset(module: ModuleType, told: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the classes of a module the values that they had when this was first called for it.

    Args:
        told: other values, by the name of the class.
    """
    for kind, values in _at_first(module):
        for name in _plain_values(kind).keys() - values.keys():
            delattr(kind, name)
        now = _plain_values(kind)
        for name, value in values.items():
            if name not in now or now[name] != value:
                setattr(kind, name, deepcopy(value))
        for name, value in told.get(kind.__name__, {}).items():
            setattr(kind, name, value)


@cache
def _at_first(module: ModuleType) -> list[tuple[type, Mapping[str, Any]]]:
    return [(kind, deepcopy(_plain_values(kind))) for kind in _classes(module)]


def _classes(module: ModuleType) -> Iterator[type]:
    """Yield the classes that a module holds, if they come from its own package."""
    package = module.__name__.partition(".")[0]
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__.partition(".")[0] == package:
            yield value


def _plain_values(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(kind).items()
        if isinstance(value, _PLAIN) and not name.startswith("__")
    }
