"""How other programs name the layers that adapter files speak of.

diffusers names layers by their dotted paths and has several where published checkpoints have one, fused. A
family that is known to be trained by such programs has a module `exchange` beside its others.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from typing import Any

from sfumato.models.interface.other_names import Exchanged
from sfumato.models.registry.families import families


def exchanged(names: Collection[str]) -> list[Exchanged]:
    """Return the layers that a file with these tensors may speak of, in either naming; empty if unknown."""
    return [entry for module in _modules("exchange") for entry in module.exchanged(names)]


def own_names(layers: Collection[str]) -> dict[str, str]:
    """Return our names of layers that a file calls otherwise, where nothing but the name differs.

    Both are without the adapter kind's prefix. A family with such files has a module `lora_names`.
    """
    return {name: own for module in _modules("lora_names") for name, own in module.own_names(layers).items()}


def _modules(name: str) -> Iterator[Any]:
    """Yield the modules of that name beside the families that have one."""
    for family in families():
        module = f"sfumato.models.families.{family}.{name}"
        if find_spec(module):
            yield importlib.import_module(module)
