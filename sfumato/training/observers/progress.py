"""What a run tells the person who waits for it, read one step late so that the device never waits."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from functools import cache

import psutil
import torch

from sfumato import log
from sfumato.training.core.events import Ended
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Plan, Step
from sfumato.training.core.readings import Reading

logger = logging.getLogger(__name__)


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


class Bar(Observer):
    """The progress bar: loss, rate, images a second, memory, time left."""

    def __init__(self, plan: Plan, images_per_step: float, finished: int = 0) -> None:
        self._bar = log.progress(total=plan.num_steps, initial=finished, unit="step", title="training")
        self._averages = Averages(plan.steps_per_epoch)
        self._images_per_step = images_per_step
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

    def ended(self, event: Ended) -> None:
        """Leave the last state on the screen."""
        if self._last is not None:
            self._show(self._last)
        self._bar.close()

    def _show(self, reading: Reading) -> None:
        self._shown = time.monotonic()
        elapsed_s = self._shown - self._started
        speed = (reading.step.number - self._finished) * self._images_per_step / max(elapsed_s, 1e-9)
        rate = reading.rates[-1].effective
        self._bar.set_postfix_str(
            f"loss {self.average:.4f}, lr {rate:.2e}, {speed:.2f} images/s, {_memory()}", refresh=False
        )


def _memory() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GB"
    return f"{_this_process().memory_info().rss / 2**30:.1f} GB"


@cache
def _this_process() -> psutil.Process:
    return psutil.Process()
