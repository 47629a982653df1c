"""How other programs name the layers that adapter files speak of.

diffusers names layers by their dotted paths and has several where published checkpoints have one, fused. A
family that is known to be trained by such programs has a module `exchange` beside its others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import ModuleType

from sfumato.models.interface.catalogue import module_of, names
from sfumato.models.interface.other_names import Exchanged


def exchanged(layers: Collection[str]) -> list[Exchanged]:
    """Return the layers that a file with these tensors may speak of, in either naming; empty if unknown."""
    return [entry for module in _modules("exchange") for entry in module.exchanged(layers)]


def own_names(layers: Collection[str]) -> dict[str, str]:
    """Return our names of layers that a file calls otherwise, where nothing but the name differs.

    Both are without the adapter kind's prefix. A family with such files has a module `lora_names`.
    """
    return {name: own for module in _modules("lora_names") for name, own in module.own_names(layers).items()}


def _modules(name: str) -> Iterator[ModuleType]:
    """Yield the modules of that name beside the families that have one."""
    found = (module_of(family, name) for family in names())
    return (module for module in found if module is not None)
