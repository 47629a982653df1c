"""The course of a run as arithmetic: which micro-batches make which step, for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sfumato.config.run.training.length import LengthConfig


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: steps finished once this one is; the first is 1.
        epoch: from 1.
        micro_batches: positions within the epoch of the step's micro-batches, over all processes.
        first_number: number of the first of them over the whole run, from 0.
        ends_epoch, is_last: whether the epoch, the run ends with this step.
    """

    number: int
    epoch: int
    micro_batches: range
    first_number: int
    ends_epoch: bool
    is_last: bool

    def of_process(self, rank: int, world: int) -> list[tuple[int, int]]:
        """Return (position in epoch, number over the run) of each micro-batch of process `rank`."""
        mine = range(rank, len(self.micro_batches), world)
        return [(self.micro_batches[i], self.first_number + i) for i in mine]


@dataclass(frozen=True)
class Plan:
    """How many steps a run has and what each is made of.

    A step takes `world * accumulation` micro-batches, the last of an epoch what is left; its loss is the mean
    over those it has. So two processes make the same steps as one with twice the accumulation.
    """

    num_batches: int
    group: int
    num_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return math.ceil(self.num_batches / self.group)

    @property
    def num_epochs(self) -> int:
        """Epochs that are begun."""
        return math.ceil(self.num_steps / self.steps_per_epoch)

    def step(self, number: int) -> Step:
        """Return the step with this number, from 1."""
        epoch_index, position = divmod(number - 1, self.steps_per_epoch)
        first = position * self.group
        micro_batches = range(first, min(first + self.group, self.num_batches))
        ends_epoch = position + 1 == self.steps_per_epoch
        is_last = number == self.num_steps
        return Step(
            number,
            epoch_index + 1,
            micro_batches,
            epoch_index * self.num_batches + first,
            ends_epoch,
            is_last,
        )

    def steps_of(self, epoch: int, finished: int = 0) -> Iterator[Step]:
        """Yield the steps of one epoch that come after the first `finished` of the run."""
        first = max(finished, (epoch - 1) * self.steps_per_epoch) + 1
        return (self.step(n) for n in range(first, min(epoch * self.steps_per_epoch, self.num_steps) + 1))

    def steps(self, finished: int = 0) -> Iterator[Step]:
        """Yield the steps after the first `finished`."""
        return (self.step(number) for number in range(finished + 1, self.num_steps + 1))


def plan_for(config: LengthConfig, num_batches: int, world: int) -> Plan:
    """Return the plan of a run over `num_batches` batches an epoch; epochs win over steps."""
    group = world * config.gradient_accumulation_steps
    num_steps = config.max_train_steps
    if config.max_train_epochs:
        num_steps = config.max_train_epochs * math.ceil(num_batches / group)
    return Plan(num_batches, group, num_steps)
