"""What is known of a family without loading torch: how its files are told, its options, its scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sfumato.config.scripts.script import Script
from sfumato.models.interface.file_kinds import FileKind
from sfumato.models.interface.layers import Layers


@dataclass(frozen=True)
class FamilyFacts:
    """What one family brings, as `FACTS` in the module `facts` beside its others.

    Attributes:
        name: of the family, on the command line too.
        kinds: what tells its files from others.
        bases: those of the kinds that are base models, or their denoisers, with the version where the family
            has versions.
        lies_in_parts: its models are published with a file for each part.
        versions: how `ss_base_model_version` of its adapters begins.
        layers: how `--network_args` speak of its layers.
        network_modules: our network modules that adapt it; the first is the default.
        mark: an attribute that tells its denoisers from those of families that share a network module.
        scripts: its rows of the table of scripts.
        choice: help text of the option that chooses it in tools for several families, named after it; ""
            where it is the one that they take without such an option, or none that they work on.
        own_options: sections about parts that only this family has, which such tools take over.
        own_text_options: those of them that only tools which encode captions have.
    """

    name: str
    kinds: tuple[FileKind, ...] = ()
    bases: Mapping[str, int | None] = field(default_factory=dict)
    lies_in_parts: bool = True
    versions: tuple[str, ...] = ()
    layers: Layers = field(default_factory=Layers)
    network_modules: tuple[str, ...] = ()
    mark: str = ""
    scripts: tuple[Script, ...] = ()
    choice: str = ""
    own_options: tuple[type, ...] = ()
    own_text_options: tuple[type, ...] = ()
