"""The family of a run."""

from __future__ import annotations

from sfumato.config.run.run import Run
from sfumato.models.interface import catalogue
from sfumato.models.interface.family import Family


def family_for(run: Run) -> Family:
    """Return the run's family, bound to the run's paths and options.

    Raises:
        UserError: there is no such family.
    """
    name = catalogue.facts_of(run.family).name
    module = catalogue.module_of(name, "family")
    if module is None:
        raise ValueError(f"the family {name} has no module `family`")
    return module.create(run)
