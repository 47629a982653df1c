"""What a run tells the person who waits for it, read one step late so that the device never waits."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from sfumato import log
from sfumato.checkpoints.finite import largest_on_device
from sfumato.errors import UserError
from sfumato.nn.device import HostCopy
from sfumato.training.plan import Plan, Step
from sfumato.transfer import to_host

logger = logging.getLogger(__name__)


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
        paths: the pictures this process computed.
        figures: what else the trainable reports, by the name under which it is recorded.
    """

    step: Step
    loss: float
    grad_norm: float
    rates: list[Rate]
    paths: list[str]
    figures: Mapping[str, float] = field(default_factory=dict)


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


class Averages:
    """The running mean of the loss over the last epoch's worth of steps."""

    def __init__(self, window: int) -> None:
        self._losses: deque[float] = deque(maxlen=max(1, window))
        self._sum = 0.0

    def add(self, loss: float) -> float:
        """Take in one step's loss; return the mean, which skipped steps do not spoil."""
        if not math.isfinite(loss):
            return self._sum / len(self._losses) if self._losses else math.nan
        if len(self._losses) == self._losses.maxlen:
            self._sum -= self._losses[0]
        self._losses.append(loss)
        self._sum += loss
        return self._sum / len(self._losses)


class Bar:
    """The progress bar: loss, rate, pictures a second, memory, time left."""

    def __init__(self, plan: Plan, pictures_per_step: float, finished: int = 0) -> None:
        self._bar = log.progress(total=plan.num_steps, initial=finished, unit="step", title="training")
        self._averages = Averages(plan.steps_per_epoch)
        self._pictures_per_step = pictures_per_step
        self._started = self._shown = time.monotonic()
        self._finished = finished
        self._last: Reading | None = None
        self.average = math.nan

    def after(self, step: Step) -> None:
        """Move on by one step."""
        self._bar.update()

    def read(self, reading: Reading) -> None:
        """Take in the figures of the step before; show them if the bar is about to be drawn again."""
        self.average = self._averages.add(reading.loss)
        self._last = reading
        if time.monotonic() - self._shown >= log.REDRAW_S:
            self._show(reading)

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._last is not None:
            self._show(self._last)
        self._bar.close()

    def _show(self, reading: Reading) -> None:
        self._shown = time.monotonic()
        elapsed_s = self._shown - self._started
        speed = (reading.step.number - self._finished) * self._pictures_per_step / max(elapsed_s, 1e-9)
        rate = reading.rates[-1].effective
        self._bar.set_postfix_str(
            f"loss {self.average:.4f}, lr {rate:.2e}, {speed:.2f} images/s, {_memory()}", refresh=False
        )


@dataclass
class FiniteGuard:
    """Stop the run when a step's loss or gradient was not finite; that step did not touch the weights.

    Attributes:
        skips: say so and go on instead.
    """

    skips: bool = False
    last_save: str = "nothing was saved yet"

    def remember(self, path: Path) -> None:
        """Note the last good save."""
        self.last_save = f"the last good save is {path}"

    def check_weights(self, step: Step, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Raise UserError rather than save weights that a step made infinite."""
        looked_at = {name: tensor for name, tensor in tensors if tensor.is_floating_point()}
        largest = to_host((largest_on_device(tensor), torch.float64) for tensor in looked_at.values())
        for name, size in zip(looked_at, largest, strict=True):
            if not size.isfinite():
                raise UserError(
                    f"step {step.number} left {name} infinite or not a number; lower --learning_rate "
                    f"({self.last_save})"
                )

    def after(self, step: Step) -> None:
        """Do nothing: a step is judged when it is read."""

    def read(self, reading: Reading) -> None:
        """Raise UserError for a step that was not finite."""
        if math.isfinite(reading.loss) and math.isfinite(reading.grad_norm):
            return
        what = f"step {reading.step.number}: loss {reading.loss}, gradient norm {reading.grad_norm}"
        files = ", ".join(reading.paths)
        if not self.skips:
            raise UserError(
                f"{what}; lower --learning_rate or look at that step's files: {files} ({self.last_save})"
            )
        logger.warning("%s; the step is skipped, its files: %s", what, files)


def _memory() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GB"
    return f"{_this_process().memory_info().rss / 2**30:.1f} GB"


@cache
def _this_process() -> psutil.Process:
    return psutil.Process()
