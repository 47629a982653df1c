"""Train, run and rework image diffusion models.

The names below are the library's front door. They are loaded when first used, so that `import sfumato` costs
nothing and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.adapters.layers.file_form import FileForm
    from sfumato.adapters.layers.kind import AdapterKind
    from sfumato.adapters.layers.layer import AdapterLayer
    from sfumato.adapters.network.loading import network_from_file
    from sfumato.adapters.network.network import AdapterNetwork
    from sfumato.checkpoints.tensors import open_tensors, write_tensors
    from sfumato.config.run.run import Run
    from sfumato.errors import UserError
    from sfumato.library import load, read_dataset, train
    from sfumato.models.interface.facts import FamilyFacts
    from sfumato.models.interface.family import Family
    from sfumato.models.interface.parts import Parts
    from sfumato.models.registry.families import family_for
    from sfumato.sampling.generator import Generator
    from sfumato.sampling.pipeline import Pipeline
    from sfumato.sampling.request import Request
    from sfumato.training.core.observer import Observer

__version__ = "0.1.0"

__all__ = [
    "AdapterKind",
    "AdapterLayer",
    "AdapterNetwork",
    "Family",
    "FamilyFacts",
    "FileForm",
    "Generator",
    "Observer",
    "Parts",
    "Pipeline",
    "Request",
    "Run",
    "UserError",
    "family_for",
    "load",
    "network_from_file",
    "open_tensors",
    "read_dataset",
    "train",
    "write_tensors",
]

_HOMES = {
    "AdapterKind": "sfumato.adapters.layers.kind",
    "AdapterLayer": "sfumato.adapters.layers.layer",
    "AdapterNetwork": "sfumato.adapters.network.network",
    "Family": "sfumato.models.interface.family",
    "FamilyFacts": "sfumato.models.interface.facts",
    "FileForm": "sfumato.adapters.layers.file_form",
    "Generator": "sfumato.sampling.generator",
    "Observer": "sfumato.training.core.observer",
    "Parts": "sfumato.models.interface.parts",
    "Pipeline": "sfumato.sampling.pipeline",
    "Request": "sfumato.sampling.request",
    "Run": "sfumato.config.run.run",
    "UserError": "sfumato.errors",
    "family_for": "sfumato.models.registry.families",
    "load": "sfumato.library",
    "network_from_file": "sfumato.adapters.network.loading",
    "open_tensors": "sfumato.checkpoints.tensors",
    "read_dataset": "sfumato.library",
    "train": "sfumato.library",
    "write_tensors": "sfumato.checkpoints.tensors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
