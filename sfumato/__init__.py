"""Train, run and rework image diffusion models.

The names below are the library's front door. They are loaded when first used, so that `import sfumato` costs
nothing and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.adapters.loading import network_from_file
    from sfumato.adapters.network import AdapterNetwork
    from sfumato.checkpoints.tensors import open_tensors, write_tensors
    from sfumato.config.run import Run
    from sfumato.errors import UserError
    from sfumato.models.family import Family, Parts, family_for
    from sfumato.sampling.pipeline import Pipeline
    from sfumato.sampling.request import Request

__version__ = "0.1.0"

__all__ = [
    "AdapterNetwork",
    "Family",
    "Parts",
    "Pipeline",
    "Request",
    "Run",
    "UserError",
    "family_for",
    "network_from_file",
    "open_tensors",
    "write_tensors",
]

_HOMES = {
    "AdapterNetwork": "sfumato.adapters.network",
    "Family": "sfumato.models.family",
    "Parts": "sfumato.models.family",
    "Pipeline": "sfumato.sampling.pipeline",
    "Request": "sfumato.sampling.request",
    "Run": "sfumato.config.run",
    "UserError": "sfumato.errors",
    "family_for": "sfumato.models.family",
    "network_from_file": "sfumato.adapters.loading",
    "open_tensors": "sfumato.checkpoints.tensors",
    "write_tensors": "sfumato.checkpoints.tensors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
