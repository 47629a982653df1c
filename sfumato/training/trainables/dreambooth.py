"""Train a whole model on a few images of one thing, and its text encoders along with it."""

from __future__ import annotations

from sfumato.config.run.run import Run
from sfumato.models.interface.family import Family
from sfumato.training.trainables.full import FullMethod
from sfumato.training.trainables.part_rates import rates_for


def create(run: Run, family: Family) -> FullMethod:
    """Return the way to train denoiser and text encoders, unless options leave the latter out."""
    return FullMethod(run, family, rates_for(run, family, trains_encoders=True), project="dreambooth")
