import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.network.rates import ParameterGroup
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.errors import UserError
from sfumato.training.core.audience import Audience
from sfumato.training.core.commands import Command
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Plan, Step
from sfumato.training.core.readings import Reading
from sfumato.training.observers.finite import FiniteGuard
from sfumato.training.run.loop import Loop
from sfumato.training.state import resume
from sfumato.training.trainables.objective import StepLoss
from sfumato.training.update import optimizers, schedulers
from sfumato.training.update.fused import FusedUpdate
from sfumato.training.update.optimizer_step import Update
from sfumato.training.update.stepping import Stepping

STEP = Plan(1, 1, 1).step(1)


@dataclass
class Numbers:
    """A batch of the toy problem: one number an image."""

    values: Tensor
    paths: list[str]


class Line:
    """Learn y = 3x + 1 through noise and dropout, so that every generator matters."""

    file_holds_all = False

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(list(self.model.parameters()), None, "all")]

    def step_begins(self, step: Step) -> None:
        self.step = step

    def step_ends(self) -> Mapping[str, Tensor]:
        return {"biggest": max(parameter.abs().max() for parameter in self.model.parameters())}

    def loss(self, batch: Numbers, rng: torch.Generator) -> StepLoss:
        noise = 0.01 * torch.randn(batch.values.shape, generator=rng)
        error = self.model(batch.values[:, None])[:, 0] - (3 * batch.values + 1 + noise)
        return StepLoss(error**2, torch.zeros_like(error))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.model.state_dict(keep_vars=True).items())

    def save(self, path: Path, metadata: Mapping[str, str], step: Step) -> None:
        path.write_text(json.dumps(dict(metadata)), encoding="utf-8")


@dataclass
class OneOf:
    """Stands for process `rank` of `world` where nothing is really summed."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum_(self, tensor: Tensor) -> None:
        """Sum over one process."""


class Twins(OneOf):
    """The first of two processes that do the same: a sum is twice what one of them has."""

    def sum_(self, tensor: Tensor) -> None:
        tensor.mul_(2)


@dataclass
class Notebook(Observer):
    readings: list[Reading] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def after(self, step: Step) -> None:
        self.steps.append(step.number)

    def read(self, reading: Reading) -> None:
        assert reading.step.number == len(self.readings) + 1
        self.readings.append(reading)


def _batches(plan: Plan, finished: int = 0) -> Iterator[Numbers]:
    for step in plan.steps(finished):
        for position, _ in step.of_process(0, 1):
            values = torch.tensor([position / 4, 1 - position / 3])
            yield Numbers(values, [f"{position}.png"])


def _update(line: Line, kind: str, plan: Plan, **settings: Any) -> Update:
    chosen = optimizers.plan(OptimizerConfig(optimizer_type=kind, **settings))
    parameters = [{"params": group.parameters, "lr": 0.02} for group in line.groups()]
    optimizer = chosen.build(parameters, 0.02)
    schedule = ScheduleConfig(lr_scheduler="cosine")
    scheduler = schedulers.build(schedule, optimizer, chosen, 0.02, plan.num_steps)
    return Update(Stepping(optimizer, scheduler), OneOf(), max_grad_norm=1.0)  # type: ignore[arg-type]


def test_the_loop_learns_and_reports_every_step_once_and_in_order() -> None:
    plan, line, notes = Plan(5, 1, 60), Line(), Notebook()
    last = Loop(line, _update(line, "AdamW", plan), plan, _batches(plan), 7, Audience([notes])).run()
    assert last.is_last
    assert notes.steps == list(range(1, 61))
    losses = [reading.loss for reading in notes.readings]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    assert notes.readings[0].rates == [(pytest.approx(0.02, rel=1e-2), None)]
    assert notes.readings[6].paths == ["1.png"]
    biggest = max(parameter.abs().max().item() for parameter in line.model.parameters())
    assert notes.readings[-1].figures == {"biggest": biggest}


class Product:
    """Learn a factor whose gradient is the mean of the batch, so that every figure is known beforehand."""

    file_holds_all = False

    def __init__(self) -> None:
        self.factor = nn.Parameter(torch.ones(1))

    def step_begins(self, step: Step) -> None:
        """Begin nothing."""

    def step_ends(self) -> Mapping[str, Tensor]:
        return {}

    def loss(self, batch: Numbers, rng: torch.Generator) -> StepLoss:
        return StepLoss(self.factor * batch.values, torch.zeros_like(batch.values))


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_steps_loss_and_gradient_are_the_mean_over_its_micro_batches(is_fused: bool) -> None:
    plan, product, notes = Plan(num_batches=3, group=2, num_steps=2), Product(), Notebook()
    stepping = Stepping(torch.optim.SGD([product.factor], lr=0.5))
    update = (FusedUpdate if is_fused else Update)(stepping, OneOf(), 0.0)  # type: ignore[arg-type]
    values = ([1.0, 3.0], [4.0, 8.0], [5.0, 7.0])  # two micro-batches in the first step, one in the last
    batches = (Numbers(torch.tensor(pair), []) for pair in values)
    Loop(product, update, plan, batches, 0, Audience([notes])).run()  # type: ignore[arg-type]
    assert [(reading.loss, reading.grad_norm) for reading in notes.readings] == [(4.0, 4.0), (-6.0, 6.0)]
    assert product.factor.item() == 1 - 0.5 * 4 - 0.5 * 6


@pytest.mark.parametrize("is_fused", [False, True])
def test_losses_and_gradients_are_summed_over_processes(is_fused: bool) -> None:
    plan, product, notes = Plan(num_batches=2, group=2, num_steps=1), Product(), Notebook()
    stepping = Stepping(torch.optim.SGD([product.factor], lr=0.5))
    update = (FusedUpdate if is_fused else Update)(stepping, Twins(0, 2), 0.0)  # type: ignore[arg-type]
    batches = iter([Numbers(torch.tensor([1.0, 3.0]), [])])  # half of the step is this process's
    Loop(product, update, plan, batches, 0, Audience([notes])).run()  # type: ignore[arg-type]
    assert [(reading.loss, reading.grad_norm) for reading in notes.readings] == [(2.0, 2.0)]
    assert product.factor.item() == 1 - 0.5 * 2


@pytest.mark.parametrize("kind", ["AdamW", "Adafactor", "SGDNesterov", "adamw8bit"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(kind: str, stop: int, tmp_path: Path) -> None:
    plan = Plan(num_batches=5, group=2, num_steps=9)
    whole = Line()
    Loop(whole, _update(whole, kind, plan), plan, _batches(plan), 3).run()

    first, notes = Line(), Notebook()
    update = _update(first, kind, plan)

    def asked() -> list[Command]:
        return [Command.STOP] if len(notes.steps) == stop else []

    interrupted = Loop(first, update, plan, _batches(plan), 3, Audience([notes]), commands=asked)
    assert interrupted.run().number == stop
    resume.state_content(first, update, stop, 1, {"seed": 3, "options": {}}).write(tmp_path / "x-state")

    second = Line()
    with torch.no_grad():
        second.model[0].weight.fill_(math.pi)
    update = _update(second, kind, plan)
    state = resume.read_state(tmp_path / "x-state")
    state.restore(second, update)
    Loop(second, update, plan, _batches(plan, state.finished), 3, finished=state.finished).run()
    for (name, a), (_, b) in zip(whole.tensors(), second.tensors(), strict=True):
        assert torch.equal(a, b), name


def test_two_processes_take_the_steps_of_one_with_twice_the_accumulation() -> None:
    plan = Plan(num_batches=5, group=2, num_steps=6)
    step_losses = {}
    for world in (1, 2):
        line = Line()
        update = _update(line, "SGDNesterov", plan)
        shared: list[Tensor] = []

        def take(
            rank: int, number: int, line: Line = line, update: Update = update, world: int = world
        ) -> None:
            step = plan.step(number)
            for position, micro in step.of_process(rank, world):
                rng = torch.Generator().manual_seed(micro)
                torch.manual_seed(micro)
                values = torch.tensor([position / 4, 1 - position / 3])
                loss = line.loss(Numbers(values, []), rng).per_sample.mean() / len(step.micro_batches)
                update.accumulate(loss)

        for number in range(1, 7):
            update.begin(STEP)
            for rank in range(world):
                take(rank, number)
            shared.append(update.finish())
        step_losses[world] = torch.stack(shared)
    torch.testing.assert_close(step_losses[1], step_losses[2], rtol=1e-6, atol=1e-7)


def test_a_step_that_is_not_finite_stops_the_run_with_its_files_and_spares_the_weights() -> None:
    plan, line, notes = Plan(5, 1, 5), Line(), Notebook()

    def poisoned() -> Iterator[Numbers]:
        for number, batch in enumerate(_batches(plan)):
            yield Numbers(batch.values * (math.nan if number == 2 else 1), batch.paths)

    update = _update(line, "AdamW", plan)
    with pytest.raises(UserError, match=r"step 3: loss nan.*2\.png \(nothing was saved yet\)"):
        Loop(line, update, plan, poisoned(), 0, Audience([notes, FiniteGuard()])).run()
    assert notes.steps == [1, 2, 3]
    assert all(torch.isfinite(tensor).all() for _, tensor in line.tensors())


def test_a_state_of_other_weights_is_refused(tmp_path: Path) -> None:
    plan, line = Plan(5, 1, 5), Line()
    update = _update(line, "AdamW", plan)
    noted = {
        "options": {"network_dim": 4},
        "data": {"images": "a", "batches": "b", "group": 2, "processes": 2},
    }
    resume.state_content(line, update, 2, 1, {"seed": 3, **noted}).write(tmp_path / "s")
    other = Line()
    other.model[0] = nn.Linear(1, 9)
    state = resume.read_state(tmp_path / "s")
    assert state.differences({"network_dim": 8}) == ["--network_dim was 4 and is 8"]
    assert state.data_differences({**noted["data"], "images": "other", "processes": 3}) == [
        "images were added, changed or removed",
        "the run has 3 processes and had 2",
    ]
    assert resume.State(tmp_path, {}).data_differences({"images": "a"}) == []
    with pytest.raises(UserError, match=r"holds \(8, 1\) for 0.weight, which is \(9, 1\) now"):
        state.restore(other, _update(other, "AdamW", plan))


def test_what_is_no_state_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        resume.read_state(tmp_path / "none")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "optimizer.bin").write_bytes(b"")
    with pytest.raises(UserError, match="--network_weights, --initial_step"):
        resume.read_state(tmp_path / "theirs")
