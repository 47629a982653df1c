"""How other programs name the layers that adapter files speak of.

diffusers names layers by their dotted paths and has several where published checkpoints have one, fused. A
family that is known to be trained by such programs has a module `exchange` beside its others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import ModuleType

from sfumato.models.interface.catalogue import guest_facts, module_of, our_facts
from sfumato.models.interface.facts import FamilyFacts
from sfumato.models.interface.other_names import Exchanged


def exchanged(layers: Collection[str]) -> list[Exchanged]:
    """Return the layers that a file with these tensors may speak of, in either naming; empty if unknown."""
    for modules in _modules("exchange"):
        if found := [entry for module in modules for entry in module.exchanged(layers)]:
            return found
    return []


def own_names(layers: Collection[str]) -> dict[str, str]:
    """Return our names of layers that a file calls otherwise, where nothing but the name differs.

    Both are without the adapter kind's prefix. A family with such files has a module `lora_names`.
    """
    for modules in _modules("lora_names"):
        if found := {name: own for module in modules for name, own in module.own_names(layers).items()}:
            return found
    return {}


def _modules(name: str) -> Iterator[list[ModuleType]]:
    """Yield the modules of that name beside our families, and if these do not do, beside others'."""
    yield _beside(our_facts(), name)
    yield _beside(guest_facts(), name)


def _beside(families: Collection[FamilyFacts], name: str) -> list[ModuleType]:
    found = (module_of(facts.name, name) for facts in families)
    return [module for module in found if module is not None]
