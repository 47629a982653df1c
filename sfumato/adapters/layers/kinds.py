"""All kinds of adapters: a `KIND` of each module in this folder, and those that other packages offer.

Other packages are looked at only for a name, or for tensors, that none of ours has.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from sfumato import plugins
from sfumato.adapters import layers
from sfumato.adapters.layers.kind import AdapterKind

Kind = AdapterKind[Any]

_FIRST = "lora"
"""The kind that a file with layers of several kinds is called by."""


@cache
def ours() -> tuple[Kind, ...]:
    """Return our kinds, the most frequent first and the others by their titles."""
    names = (module.name for module in pkgutil.iter_modules(layers.__path__, f"{layers.__name__}."))
    found = [vars(importlib.import_module(name)).get("KIND") for name in names if name != __name__]
    kinds = (kind for kind in found if isinstance(kind, AdapterKind))
    return tuple(sorted(kinds, key=lambda kind: (kind.name != _FIRST, kind.title)))


def in_files() -> tuple[Kind, ...]:
    """Return those of our kinds that files are called by."""
    return tuple(kind for kind in ours() if not kind.is_variant)


def prefixes() -> tuple[str, ...]:
    """Return what our kinds put before layers' names."""
    return tuple(dict.fromkeys(kind.prefix for kind in in_files()))


def named(name: str) -> Kind | None:
    """Return the kind of that name; None if there is none.

    Raises:
        UserError: a package offers it, but cannot be imported, or offers something else.
    """
    found = next((kind for kind in ours() if kind.name == name), None)
    return found or plugins.load(plugins.ADAPTERS, name, AdapterKind)


def loading(names: Collection[str]) -> Kind | None:
    """Return the kind that can load a layer with tensors of these names."""
    return next((kind for kind in _everyones() if kind.files.can_load(names)), None)


def told_by(names: Collection[str]) -> Kind | None:
    """Return the kind of a layer with tensors of these names, in any program's naming."""
    return next((kind for kind in _everyones() if kind.files.is_told_by(names)), None)


def of_file(keys: Collection[str]) -> Kind | None:
    """Return the kind of adapter that a file with these keys is; None if it is none that is known."""
    return next((kind for kind in _everyones() if kind.files.is_in(keys)), None)


def titled(title: str) -> Kind | None:
    """Return the kind that reports call so."""
    return next((kind for kind in _everyones() if kind.title == title), None)


def _everyones() -> Iterator[Kind]:
    """Yield our kinds that files are called by, and when these do not do, other packages'."""
    yield from in_files()
    yield from (kind for kind in plugins.load_all(plugins.ADAPTERS, AdapterKind) if not kind.is_variant)
