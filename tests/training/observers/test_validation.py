from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sfumato.config.run.data.validation import ValidationConfig
from sfumato.data.batches import dataset
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader
from sfumato.training.core.audience import Audience
from sfumato.training.core.events import Validated
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Plan, Step
from sfumato.training.core.readings import Reading
from sfumato.training.observers.progress import Averages
from sfumato.training.observers.validation import ValidationObserver, rhythm_for
from sfumato.training.trainables.objective import StepLoss
from tests.data.folders import folder, plan, subset


class Guess:
    """A trainable whose loss is the mean brightness of an image, plus noise."""

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        assert batch.pixels is not None
        assert not torch.is_grad_enabled()
        noise = torch.randn(len(batch), generator=rng) + torch.rand(()) + random.random()
        return StepLoss(batch.pixels.mean(dim=(1, 2, 3)) + noise, torch.zeros(len(batch)))


class Processes:
    device = torch.device("cpu")

    def __init__(self, rank: int = 0, world: int = 1, others: Tensor | None = None) -> None:
        self.rank, self.world, self.others = rank, world, others
        self.sums: list[Tensor] = []

    def sum_(self, tensor: Tensor) -> None:
        self.sums.append(tensor.clone())
        if self.others is not None:
            tensor += self.others


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    path = folder(tmp_path_factory.mktemp("held") / "back", [(64, 64)] * 5)
    return dataset.read([plan(subset(path))], seed=3)


def observer(
    images: TrainingSet, processes: Processes | None = None, audience: Audience | None = None, **config: Any
) -> ValidationObserver:
    return ValidationObserver(
        cast("Any", Guess()),
        images,
        Loader(images),
        rhythm_for(ValidationConfig(**config)),
        cast("Any", processes or Processes()),
        None,
        Averages(4),
        nullcontext,
        audience or Audience(),
    )


def marks(**config: int) -> list[str | None]:
    rhythm = rhythm_for(ValidationConfig(**config))
    return [rhythm.mark(step) for step in Plan(num_batches=2, group=1, num_steps=5).steps()]


def test_the_loss_is_measured_every_epoch_unless_something_else_is_asked_for() -> None:
    assert marks() == [None, "epoch", None, "epoch", "epoch"]
    assert marks(validate_every_n_epochs=2) == [None, None, None, "epoch", None]
    assert marks(validate_every_n_steps=3) == [None, None, "step", None, None]
    assert marks(validate_every_n_steps=1, validate_every_n_epochs=2) == ["step"] * 3 + ["epoch", "step"]
    assert marks(validate_every_n_steps=0) == marks()


def test_a_second_measurement_is_the_first_again(images: TrainingSet) -> None:
    measuring = observer(images)
    assert measuring.measure() == measuring.measure()


def test_the_loss_is_the_mean_over_images_not_over_batches(images: TrainingSet) -> None:
    class Brightness:
        def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
            assert batch.pixels is not None
            return StepLoss(batch.pixels.mean(dim=(1, 2, 3)), torch.zeros(len(batch)))

    measuring, plans = observer(images), images.batches(1)
    measuring.trainable = cast("Any", Brightness())
    each = [Brightness().loss(batch, torch.Generator()).per_sample for batch in Loader(images)(plans)]
    assert sorted(map(len, each)) == [1, 2, 2]
    assert measuring.measure() == pytest.approx(torch.cat(each).mean().item(), rel=1e-6)


def test_measuring_leaves_every_generator_as_it_was(images: TrainingSet) -> None:
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    observer(images).measure()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_two_processes_measure_what_one_does(images: TrainingSet) -> None:
    alone = observer(images).measure()
    second = Processes(1, 2)
    observer(images, second).measure()
    assert second.sums[0][1] < 5
    first = observer(images, Processes(0, 2, others=second.sums[0]))
    assert first.measure() == pytest.approx(alone, rel=1e-6)


def test_at_most_so_many_batches_are_measured(images: TrainingSet) -> None:
    processes = Processes()
    observer(images, processes, max_validation_steps=1).measure()
    assert processes.sums[0][1] in (1, 2)  # batches of 2, 2 and 1
    assert processes.sums[0][1] < 5


def test_figures_are_recorded_beside_the_average_of_the_training(images: TrainingSet) -> None:
    recorded: list[Validated] = []

    class Notebook(Observer):
        def validated(self, event: Validated) -> None:
            recorded.append(event)

    measuring = observer(images, audience=Audience([Notebook()]), validate_every_n_steps=2)
    steps: Iterator[Step] = Plan(num_batches=4, group=1, num_steps=2).steps()
    for step, loss in zip(steps, (0.25, 0.75), strict=True):
        measuring.read(Reading(step, loss, 1.0, [], []))
        measuring.after(step)
    loss = measuring.measure()
    assert loss is not None
    expected = {"loss/validation/step_average": loss, "loss/validation/step_divergence": loss - 0.5}
    assert recorded == [Validated(step=2, epoch=1, figures=expected)]


def test_a_measurement_that_one_process_gives_up_counts_for_none(images: TrainingSet, tmp_path: Path) -> None:
    stopping = Processes()
    measuring = observer(images, stopping)
    measuring.should_stop = lambda: True
    assert measuring.measure() is None
    assert observer(images, Processes(0, 2, others=stopping.sums[0])).measure() is None
