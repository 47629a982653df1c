"""The figures of a step, read one step late so that the device never waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from sfumato.nn.device import HostCopy
from sfumato.training.core.plan import Step


class Rate(NamedTuple):
    """The learning rate of one parameter group.

    Attributes:
        scheduled: what the schedule says.
        factor: the d by which an optimizer that finds its rate itself multiplies it; None for all others.
    """

    scheduled: float
    factor: float | None = None

    @property
    def effective(self) -> float:
        """The rate at which weights move."""
        return self.scheduled if self.factor is None else self.factor * self.scheduled


@dataclass(frozen=True)
class Reading:
    """One step's figures, on the host.

    Attributes:
        loss: mean over the step's micro-batches.
        grad_norm: L2 norm before clipping.
        rates: of each parameter group.
        paths: the images this process computed.
        figures: what else the trainable reports, by the name under which it is recorded.
    """

    step: Step
    loss: float
    grad_norm: float
    rates: list[Rate]
    paths: list[str]
    figures: Mapping[str, float] = field(default_factory=dict)

    def rate_figures(self, names: Sequence[str]) -> dict[str, float]:
        """Return each group's rate, and, where the optimizer found a factor d, what it comes to with it."""
        figures = {}
        for name, rate in zip(names, self.rates, strict=True):
            figures[f"lr/{name}"] = rate.scheduled
            if rate.factor is not None:
                figures[f"lr/d*lr/{name}"] = rate.effective
        return figures


class LateReader:
    """Hold a step's figures until the next step is under way, when copying them costs no waiting."""

    def __init__(self) -> None:
        self._held: tuple[HostCopy, Callable[[list[float]], Reading]] | None = None

    def exchange(
        self, step: Step, values: Tensor, paths: list[str], rates: list[Rate], names: Sequence[str] = ()
    ) -> Reading | None:
        """Take in a step's figures; return those of the step before, or None at the first.

        Args:
            values: (2 + N,): loss, gradient norm, and what `names` names.
        """
        reading = self.flush()

        def reading_of(read: list[float]) -> Reading:
            loss, norm, *others = read
            return Reading(step, loss, norm, rates, paths, dict(zip(names, others, strict=True)))

        self._held = HostCopy(values), reading_of
        return reading

    def flush(self) -> Reading | None:
        """Return what is held."""
        if self._held is None:
            return None
        copy, reading_of = self._held
        self._held = None
        return reading_of(copy.read().tolist())
