"""Which families there are: the folders of `models/families/`, each found by its name."""

from __future__ import annotations

import importlib
import pkgutil

from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import Family

_FAMILIES = "sfumato.models.families"


def family_for(run: Run) -> Family:
    """Return the run's family, bound to the run's paths and options.

    Raises:
        UserError: there is no such family.
    """
    if run.family not in families():
        raise UserError(f"there is no family {run.family!r}; known: {', '.join(families())}")
    return importlib.import_module(f"{_FAMILIES}.{run.family}.family").create(run)


def families() -> list[str]:
    """Return the names of all families: the folders of `models/families/`."""
    return [found.name for found in pkgutil.iter_modules(importlib.import_module(_FAMILIES).__path__)]
