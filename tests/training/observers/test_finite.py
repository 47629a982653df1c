"""What a loss that is no number is blamed on."""

from __future__ import annotations

import math

import pytest

from sfumato.errors import UserError
from sfumato.training.core.plan import Plan
from sfumato.training.core.readings import Reading
from sfumato.training.observers.finite import FiniteGuard

STEPS = list(Plan(num_batches=2, group=1, num_steps=2).steps())


def reading(step: int, loss: float) -> Reading:
    return Reading(STEPS[step], loss, 1.0, [], ["a.png"])


def test_the_learning_rate_is_blamed_only_once_something_was_learned() -> None:
    with pytest.raises(UserError, match=r"loss nan.*the rate is not the reason: try another base model"):
        FiniteGuard().read(reading(0, math.nan))
    guard = FiniteGuard()
    guard.read(reading(0, 0.5))
    with pytest.raises(UserError, match=r"loss nan.*lower --learning_rate or look at that step"):
        guard.read(reading(1, math.nan))
