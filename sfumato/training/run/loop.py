"""The training loop. It knows steps and batches; it never learns which model is trained, or how."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch

from sfumato import seeds
from sfumato.data.batches.collate import Batch
from sfumato.training.core.audience import Audience
from sfumato.training.core.commands import Command
from sfumato.training.core.distributed import has_accelerator
from sfumato.training.core.plan import Plan, Step
from sfumato.training.trainables import Trainable
from sfumato.training.update.optimizer_step import WeightUpdate


@dataclass
class Loop:
    """Everything the loop needs, ready to run.

    Attributes:
        batches: this process's batches, in order, from the first step that is to run.
        finished: steps that were finished before, in an earlier run.
        commands: asked after each step for what is to be done there; STOP ends the run.
        reached: the last step that is done; None before the first, and while weights are changing.
        num_done: steps that are done, by this run or an earlier one.
    """

    trainable: Trainable
    update: WeightUpdate
    plan: Plan
    batches: Iterator[Batch]
    seed: int
    audience: Audience = field(default_factory=Audience)
    finished: int = 0
    commands: Callable[[], Collection[Command]] = tuple
    reached: Step | None = None
    num_done: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_done = self.finished

    def run(self) -> Step:
        """Train to the end of the plan, or until asked to stop; return the last step that was taken."""
        step = self.plan.step(max(1, self.finished))
        self.reached = step if self.finished else None
        for step in self.plan.steps(self.finished):
            paths = self._take(step)
            self.num_done, self.reached = step.number, step
            self.audience.figures(step, self._values, paths, self.update.stepping.rates(), self._names)
            self.audience.after(step)
            if self._answer(step):
                break
        self.audience.catch_up()
        return step

    def _answer(self, step: Step) -> bool:
        """Let the audience do what was asked for; return whether the run is to end."""
        asked = self.commands()
        for command in asked:
            self.audience.asked(command, step)
        return Command.STOP in asked

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


def _reseed(seed: int, number: int) -> torch.Generator:
    """Make every draw of a micro-batch a function of the run's seed and the micro-batch's number."""
    derived = seeds.derive("micro-batch", seed, number)
    # Without a device, torch.manual_seed notes a whole stack trace in case one turns up.
    (torch.manual_seed if has_accelerator() else torch.default_generator.manual_seed)(derived)
    random.seed(derived)
    return torch.Generator().manual_seed(seeds.derive("noise", seed, number))
