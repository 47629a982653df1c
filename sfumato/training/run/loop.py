"""The training loop. It knows steps and batches; it never learns which model is trained, or how."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from sfumato import seeds
from sfumato.data.batches.collate import Batch
from sfumato.training.core.distributed import has_accelerator
from sfumato.training.core.plan import Plan, Step
from sfumato.training.core.readings import LateReader, Reading
from sfumato.training.trainables import Trainable
from sfumato.training.update.optimizer_step import WeightUpdate


class Observer(Protocol):
    """Somebody who watches a run: the progress bar, a tracker, whoever saves."""

    def after(self, step: Step) -> None:
        """Act on the weights as this step left them."""
        ...

    def read(self, reading: Reading) -> None:
        """Take notice of a step's loss, one step late."""
        ...


@dataclass
class Loop:
    """Everything the loop needs, ready to run.

    Attributes:
        batches: this process's batches, in order, from the first step that is to run.
        finished: steps that were finished before, in an earlier run.
        should_stop: asked after each step; True ends the run there.
        reached: the last step that is done; None before the first, and while weights are changing.
    """

    trainable: Trainable
    update: WeightUpdate
    plan: Plan
    batches: Iterator[Batch]
    seed: int
    observers: Sequence[Observer] = ()
    finished: int = 0
    should_stop: Callable[[], bool] = lambda: False
    reached: Step | None = None
    _late: LateReader = field(default_factory=LateReader)

    def run(self) -> Step:
        """Train to the end of the plan, or until asked to stop; return the last step that was taken."""
        step = self.plan.step(max(1, self.finished))
        self.reached = step if self.finished else None
        for step in self.plan.steps(self.finished):
            paths = self._take(step)
            self.reached = step
            self._tell(
                self._late.exchange(step, self._values, paths, self.update.stepping.rates(), self._names)
            )
            for observer in self.observers:
                observer.after(step)
            if self.should_stop():
                break
        self.catch_up()
        return step

    def catch_up(self) -> None:
        """Tell the observers the last step's figures now, at the price of waiting for the device."""
        self._tell(self._late.flush())

    def _take(self, step: Step) -> list[str]:
        """Take one optimizer step; return the files of this process's images."""
        processes = self.update.processes
        paths: list[str] = []
        self.trainable.step_begins(step)
        self.update.begin(step)
        for _, number in step.of_process(processes.rank, processes.world):
            batch = next(self.batches)
            rng = _reseed(self.seed, number)
            loss = self.trainable.loss(batch, rng)
            self.update.accumulate(loss.per_sample.mean() / len(step.micro_batches))
            paths += batch.paths
        self.reached = None
        values = self.update.finish()
        figures = self.trainable.step_ends()
        self._names = tuple(figures)
        self._values = torch.stack([*values, *(figure.to(values) for figure in figures.values())])
        return paths

    def _tell(self, reading: Reading | None) -> None:
        for observer in self.observers if reading else ():
            observer.read(reading)  # type: ignore[arg-type]


def _reseed(seed: int, number: int) -> torch.Generator:
    """Make every draw of a micro-batch a function of the run's seed and the micro-batch's number."""
    derived = seeds.derive("micro-batch", seed, number)
    # Without a device, torch.manual_seed notes a whole stack trace in case one turns up.
    (torch.manual_seed if has_accelerator() else torch.default_generator.manual_seed)(derived)
    random.seed(derived)
    return torch.Generator().manual_seed(seeds.derive("noise", seed, number))
