"""The loss on images that are not trained, with the same noise each time, so that figures compare."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from sfumato import seeds
from sfumato.adapters.network.network import Network
from sfumato.config.run.data.validation import ValidationConfig
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader
from sfumato.training.core.audience import Audience
from sfumato.training.core.distributed import Processes
from sfumato.training.core.events import Validated
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Step
from sfumato.training.core.readings import Reading
from sfumato.training.observers.evaluation import at_rest, same_random_numbers
from sfumato.training.observers.progress import Averages
from sfumato.training.trainables import Trainable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationRhythm:
    """When the loss is measured, and on how many batches at most; None means never, or all."""

    every_epochs: int | None
    every_steps: int | None
    max_batches: int | None = None

    def mark(self, step: Step) -> str | None:
        """Return `epoch` or `step`, whichever a measurement after this step belongs to, or None."""
        if self.every_epochs and step.epoch % self.every_epochs == 0 and (step.ends_epoch or step.is_last):
            return "epoch"
        return "step" if self.every_steps and step.number % self.every_steps == 0 else None


def rhythm_for(config: ValidationConfig) -> ValidationRhythm:
    """Return the rhythm that the options ask for: every epoch, if they say nothing."""
    epochs, steps = config.validate_every_n_epochs or None, config.validate_every_n_steps or None
    return ValidationRhythm(
        epochs if epochs or steps else 1, steps, max_batches=config.max_validation_steps or None
    )


@dataclass
class ValidationObserver(Observer):
    """Measures the loss of the weights as they would be saved.

    Attributes:
        images: those that are not trained.
        evaluating: the context in which weights are as they would be saved.
        averages: of the loss in training, for comparison.
        audience: catches up before a measurement, which brings these up to date, and is told of it.
        should_stop: asked before each batch; True gives the measurement up.
    """

    trainable: Trainable
    images: TrainingSet
    loader: Loader
    rhythm: ValidationRhythm
    processes: Processes
    network: Network | None
    averages: Averages
    evaluating: Callable[[], AbstractContextManager[object]]
    audience: Audience
    should_stop: Callable[[], bool] = lambda: False
    average: float = float("nan")

    def after(self, step: Step) -> None:
        """Measure, if it is time to."""
        mark = self.rhythm.mark(step)
        if mark is None:
            return
        self.audience.catch_up()
        loss = self.measure()
        if loss is None:
            return
        logger.info("step %d: validation loss %.5f", step.number, loss)
        name = f"loss/validation/{mark}"
        figures = {f"{name}_average": loss, f"{name}_divergence": loss - self.average}
        self.audience.validated(Validated(step.number, step.epoch, figures))

    def read(self, reading: Reading) -> None:
        """Keep the average of the training loss."""
        self.average = self.averages.add(reading.loss)

    def measure(self) -> float | None:
        """Return the mean loss of an image over all processes, or None if it was given up."""
        device = self.processes.device
        totals = torch.zeros(3, device=device)  # loss, images, whether somebody gave up
        with self.evaluating(), at_rest(self.network), same_random_numbers(device), torch.no_grad():
            for number, batch in self._batches():
                if self.should_stop():
                    totals[2] = 1
                    break
                losses = self.trainable.loss(batch, self._reseed(number)).per_sample
                totals[0] += losses.sum()
                totals[1] += len(losses)
        self.processes.sum_(totals)
        loss, num_images, given_up = totals.tolist()
        return None if given_up else loss / num_images

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield this process's batches, always those of the first epoch, with their numbers."""
        plan = self.images.batches(1)
        mine = range(len(plan))[: self.rhythm.max_batches][self.processes.rank :: self.processes.world]
        return zip(mine, self.loader(plan.select(mine)), strict=True)

    def _reseed(self, number: int) -> torch.Generator:
        """Make every draw of a batch a function of the images' seed and the batch's number."""
        derived = seeds.derive("validation", self.images.seed, number)
        torch.manual_seed(derived)
        random.seed(derived)
        return torch.Generator().manual_seed(seeds.derive("validation noise", self.images.seed, number))
