"""All kinds of adapters: a `KIND` of each module here and in `formulas/`, and those of other packages.

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
from sfumato.adapters.layers import formulas
from sfumato.adapters.layers.kind import AdapterKind

Kind = AdapterKind[Any]

_FIRST = "lora"
"""The kind that a file with layers of several kinds is called by."""


@cache
def ours() -> tuple[Kind, ...]:
    """Return our kinds, the most frequent first and the others by their titles."""
    names = (
        module.name
        for folder in (layers, formulas)
        for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}.")
    )
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


def trained() -> tuple[Kind, ...]:
    """Return those of our kinds that files are called by and that can be trained here."""
    return tuple(kind for kind in in_files() if kind.make)


def loading(names: Collection[str], layer: str = "") -> Kind | None:
    """Return the kind that can load a layer: one that knows all of its tensors, if there is one.

    Where several do, the prefix decides; where none does, the formulas of several make up the change.

    Args:
        names: of the layer's tensors.
        layer: its name in the file.
    """
    own = [kind for kind in in_files() if kind.files.can_load(names)]
    if not own:
        return next((kind for kind in _everyones() if kind.files.can_load(names)), None)
    knowing = [kind for kind in own if kind.files.explains(names)]
    composed = [kind for kind in own if kind.files.load is None]
    best = next((kind for kind in knowing if layer.startswith(kind.prefix)), None)
    return best or (knowing or composed or own)[0]


def told_by(names: Collection[str]) -> Kind | None:
    """Return the kind of a layer with tensors of these names."""
    knowing = (kind for kind in in_files() if kind.files.can_load(names) and kind.files.explains(names))
    return next(knowing, None) or next((k for k in _everyones() if k.files.is_told_by(names)), None)


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
