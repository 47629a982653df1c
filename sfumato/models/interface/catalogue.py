"""The families that there are: our own, and those that other installed packages bring.

Ours are the folders of `models/families/`. A package brings one by an entry point of the group
`sfumato.families`, with the family's name, that leads to its facts:

    [project.entry-points."sfumato.families"]
    toy = "toy_family.facts:FACTS"

The module `family` beside that module has `create(run)`. Packages are only looked into for a name or a file
that is none of ours, so that they cost nothing otherwise.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from types import ModuleType

from sfumato import plugins
from sfumato.errors import UserError
from sfumato.models.interface.facts import FamilyFacts

_OURS = "sfumato.models.families"


@cache
def our_facts() -> tuple[FamilyFacts, ...]:
    """Return the facts of our own families, by their names in order."""
    return tuple(importlib.import_module(f"{_OURS}.{name}.facts").FACTS for name in _our_names())


def facts_of(name: str) -> FamilyFacts:
    """Return the facts of the family of that name.

    Raises:
        UserError: there is none, or its package cannot be imported.
    """
    ours = next((facts for facts in our_facts() if facts.name == name), None)
    found = ours or plugins.load(plugins.FAMILIES, name, FamilyFacts)
    if found is None:
        raise UserError(f"there is no family {name!r}; known: {', '.join(names())}")
    return found


def everyone() -> Iterator[FamilyFacts]:
    """Yield the facts of all families; other packages are imported only after ours have been looked at."""
    yield from our_facts()
    yield from guest_facts()


def guest_facts() -> tuple[FamilyFacts, ...]:
    """Return the facts of families of other packages; one that cannot be imported is a warning."""
    return plugins.load_all(plugins.FAMILIES, FamilyFacts)


def names() -> list[str]:
    """Return the names of all families, ours first; no package is imported."""
    return [*_our_names(), *plugins.names(plugins.FAMILIES)]


def module_of(name: str, module: str) -> ModuleType | None:
    """Import a module that lies beside the facts of a family; None if it has no such module."""
    package = f"{_OURS}.{name}" if name in _our_names() else plugins.package(plugins.FAMILIES, name)
    full = f"{package}.{module}"
    return importlib.import_module(full) if find_spec(full) else None


@cache
def _our_names() -> tuple[str, ...]:
    return tuple(found.name for found in pkgutil.iter_modules(importlib.import_module(_OURS).__path__))
