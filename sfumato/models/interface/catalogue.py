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
import logging
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from types import ModuleType

from sfumato.errors import UserError, guest_code
from sfumato.models.interface.facts import FamilyFacts

logger = logging.getLogger(__name__)

GROUP = "sfumato.families"
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
    if ours is not None:
        return ours
    entry = next((entry for entry in _entries() if entry.name == name), None)
    if entry is None:
        raise UserError(f"there is no family {name!r}; known: {', '.join(names())}")
    return _imported(entry)


@cache
def guest_facts() -> tuple[FamilyFacts, ...]:
    """Return the facts of families of other packages; one that cannot be imported is a warning."""
    return tuple(facts for facts in map(_imported_or_none, _entries()) if facts is not None)


def everyone() -> Iterator[FamilyFacts]:
    """Yield the facts of all families; other packages are imported only after ours have been looked at."""
    yield from our_facts()
    yield from guest_facts()


def names() -> list[str]:
    """Return the names of all families, ours first; no package is imported."""
    return [*_our_names(), *(entry.name for entry in _entries())]


def module_of(name: str, module: str) -> ModuleType | None:
    """Import a module that lies beside the facts of a family; None if it has no such module."""
    package = _OURS + f".{name}"
    if name not in _our_names():
        entry = next(entry for entry in _entries() if entry.name == name)
        package = entry.module.rpartition(".")[0]
    full = f"{package}.{module}"
    return importlib.import_module(full) if find_spec(full) else None


def _our_names() -> list[str]:
    return [found.name for found in pkgutil.iter_modules(importlib.import_module(_OURS).__path__)]


def _entries() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


def _imported_or_none(entry: EntryPoint) -> FamilyFacts | None:
    try:
        return _imported(entry)
    except UserError as error:
        logger.warning("%s", error)
        return None


def _imported(entry: EntryPoint) -> FamilyFacts:
    with guest_code(f"the family {entry.name!r} of the installed package at {entry.value} cannot be used"):
        return entry.load()
