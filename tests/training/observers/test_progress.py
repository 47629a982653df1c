"""Figures of a run: averages over a window, and rates as they act."""

import math

from sfumato.training.core.readings import Rate
from sfumato.training.observers.progress import Averages


def test_the_average_is_over_the_last_steps_and_skips_what_is_not_finite() -> None:
    averages = Averages(2)
    assert [averages.add(loss) for loss in (1.0, 3.0, 5.0, math.nan, 1.0)] == [1.0, 2.0, 4.0, 4.0, 3.0]
    assert math.isnan(Averages(3).add(math.inf))


def test_a_rate_that_the_optimizer_finds_multiplies_the_scheduled_one() -> None:
    assert Rate(0.5).effective == 0.5
    assert Rate(0.5, 0.25).effective == 0.125
