"""Options that change nothing for the model at hand, which only its file tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from sfumato.config.run.image_scripts.sizes import SizeConfig
from sfumato.config.run.image_scripts.steps import StepConfig
from sfumato.config.run.run import Run
from sfumato.models.interface.family import Family, Prediction, is_told_sizes

_SIDES = ("H", "W")
"""Sizes that say something to every model."""


def idle_here(run: Run, family: Family) -> Iterator[str]:
    """Yield a line for each group of options without effect."""
    size = run[SizeConfig]
    told = [field.name for field in fields(size) if field.name not in _SIDES]
    given = [f"--{name}" for name in told if getattr(size, name) is not None]
    if given and not is_told_sizes(family):
        yield f"{', '.join(given)} without effect here: this model is told no sizes"
    if run[StepConfig].zero_terminal_snr and family.prediction is Prediction.EPSILON:
        yield "--zero_terminal_snr has no effect here: this model predicts noise, which says nothing there"
