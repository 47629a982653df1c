"""What other packages offer: objects that they name as entry points of one of our groups.

A package says so in its `pyproject.toml`:

    [project.entry-points."sfumato.adapters"]
    scale = "my_package.scale:KIND"
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from sfumato.errors import UserError, guest_code

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

ADAPTERS = "sfumato.adapters"
"""The group of kinds of adapters, each an `AdapterKind`."""

FAMILIES = "sfumato.families"
"""The group of families of models, each a `FamilyFacts`."""

Offer = TypeVar("Offer")

logger = logging.getLogger(__name__)


def names(group: str) -> list[str]:
    """Return the names that installed packages offer in a group; nothing is imported."""
    return [entry.name for entry in _entries(group)]


def package(group: str, name: str) -> str:
    """Return the package in which the module of an offer lies; nothing is imported."""
    entry = next(iter(_entries(group, name)))
    return entry.module.rpartition(".")[0]


def load(group: str, name: str, expected: type[Offer]) -> Offer | None:
    """Return the object of that name; None if no package offers one.

    Raises:
        UserError: the package cannot be imported, or offers another type of object.
    """
    entry = next(iter(_entries(group, name)), None)
    return None if entry is None else _loaded(entry, expected)


def load_all(group: str, expected: type[Offer]) -> tuple[Offer, ...]:
    """Return all objects of a group; one that `load` would refuse is left out, with one warning.

    They are looked for again only when there are other folders to find packages in.
    """
    return _load_all(group, expected, tuple(sys.path))


@cache
def _load_all(group: str, expected: type[Offer], path: tuple[str, ...]) -> tuple[Offer, ...]:
    found = (_loaded_or_warning(entry, expected) for entry in _entries(group))
    return tuple(offer for offer in found if offer is not None)


def _entries(group: str, name: str = "") -> EntryPoints:
    from importlib.metadata import entry_points  # takes longer to load than all that --help needs beside it

    return entry_points(group=group, name=name) if name else entry_points(group=group)


def _loaded_or_warning(entry: EntryPoint, expected: type[Offer]) -> Offer | None:
    try:
        return _loaded(entry, expected)
    except UserError as error:
        logger.warning("%s", error)
        return None


def _loaded(entry: EntryPoint, expected: type[Offer]) -> Offer:
    package = entry.dist.name if entry.dist else entry.module
    what, remedy = f"the package {package} offers {entry.name} ({entry.group})", "mend or remove the package"
    with guest_code(f"{what}, which cannot be imported", remedy):
        offer = entry.load()
    if not isinstance(offer, expected):
        raise UserError(f"{what}, a {type(offer).__name__} instead of a {expected.__name__}; {remedy}")
    return offer
