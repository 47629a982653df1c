"""Which family an adapter file is for, told by the layers that it speaks of, in any program's naming.

Each family that has a module `layer_names` beside its others brings a table of its layers. Families share
many names, and one program's names for one are another program's for the other: what decides is how many
inputs the layers have, then how many of the names are known, then whose own names they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from sfumato.models.interface.catalogue import guest_facts, module_of, our_facts
from sfumato.models.interface.facts import FamilyFacts
from sfumato.models.interface.layer_names import FamilyNames


def names_for(layers: Mapping[str, int | None]) -> FamilyNames | None:
    """Return the names of the family that layers of a denoiser belong to; None if no family knows one.

    Args:
        layers: the number of each layer's inputs, if it is known, by its path with underscores for dots.
    """
    for facts in (our_facts, guest_facts):  # other packages are imported only for what is none of ours
        tables = [table for table in _tables(facts(), layers) if table.places.keys() & layers.keys()]
        if tables:
            return max(tables, key=lambda table: _fit(table, layers))
    return None


def names_of(family: str, layers: Collection[str]) -> FamilyNames | None:
    """Return the names of a family, as deep as these layers go; None if it brings none."""
    module = module_of(family, "layer_names")
    return module.names(layers) if module else None


def _fit(table: FamilyNames, layers: Mapping[str, int | None]) -> tuple[int, int, int]:
    """Return how well a file's layers fit a family, the most telling first."""
    told = [inputs for path, inputs in layers.items() if inputs and path.endswith(table.told_by)]
    is_told = sum(inputs in table.inputs for inputs in told) if table.told_by else 0
    places = [(path, table.places[path]) for path in layers if path in table.places]
    return is_told, len(places), sum(place.layer.own == f"unet_{path}" for path, place in places)


def _tables(families: Collection[FamilyFacts], paths: Collection[str]) -> Iterator[FamilyNames]:
    for facts in families:
        if table := names_of(facts.name, paths):
            yield table
