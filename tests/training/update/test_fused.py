"""Weights that change within the backward pass: what is freed, clipped and skipped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sfumato.config.run.model.whole_model import WholeModelConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.errors import UserError
from sfumato.training.core.plan import Plan
from sfumato.training.run.weight_updates import check_steps
from sfumato.training.update import optimizers
from sfumato.training.update.fused import FusedUpdate
from sfumato.training.update.optimizer_step import Update
from sfumato.training.update.stepping import Rounding, Stepping

STEP = Plan(1, 1, 1).step(1)


@dataclass
class OneOf:
    """Stands for process `rank` of `world` where nothing is really summed."""

    rank: int = 0
    world: int = 1
    device = torch.device("cpu")

    def sum_(self, tensor: Tensor) -> None:
        """Sum over one process."""

    def from_first(self, number: int) -> int:
        return number


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def _stepping(model: nn.Module, name: str = "SGD", rounding: Rounding | None = None) -> Stepping:
    plan = optimizers.plan(OptimizerConfig(optimizer_type=name, learning_rate=0.1))
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    return Stepping(plan.build(groups, 0.1), rate_places=[0], rounding=rounding)


def _fused(model: nn.Module, name: str = "SGD", clip: float = 0.0, *, skips: bool = False) -> FusedUpdate:
    return FusedUpdate(_stepping(model, name), OneOf(), clip, skips)  # type: ignore[arg-type]


def _loss(model: nn.Module) -> Tensor:
    return model(torch.linspace(-1, 1, 8).view(2, 4)).square().mean()


def _step(update: FusedUpdate | Update, loss: Tensor) -> tuple[float, float]:
    update.begin(STEP)
    update.accumulate(loss)
    found, norm = update.finish().tolist()
    return found, norm


def test_each_gradient_is_gone_before_the_next_weight_is_changed() -> None:
    model = _model()
    update, alive = _fused(model), []
    inner = update.stepping.optimizer.step

    def step() -> None:
        alive.append(sum(parameter.grad is not None for parameter in model.parameters()))
        inner()

    update.stepping.optimizer.step = step  # type: ignore[method-assign]
    _step(update, _loss(model))
    assert alive == [1] * 6 or max(alive) <= 2  # a layer's weight and bias may arrive together
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_norm_is_that_of_all_gradients_and_the_loss_that_of_the_step() -> None:
    fused, plain = _model(), _model()
    expected = _step(Update(_stepping(plain), OneOf(), 0.0), _loss(plain))  # type: ignore[arg-type]
    assert _step(_fused(fused), _loss(fused)) == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(fused.parameters(), plain.parameters(), strict=True))


def test_each_weight_is_clipped_by_itself() -> None:
    model, before = _model(), _model()
    _step(_fused(model, clip=1e-3), _loss(model) * 100)
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert (now - then).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-2)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor"])
def test_no_weight_takes_a_number_that_is_not_finite(name: str, skips: bool) -> None:
    model = _model()
    update = _fused(model, name, skips=skips)
    hook = model[2].weight.register_hook(lambda gradient: gradient * float("nan"))
    _, norm = _step(update, _loss(model))
    assert math.isnan(norm)
    hook.remove()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    if skips:  # the last layer was changed before, the first was not reached
        assert torch.equal(model[0].weight, _model()[0].weight)
        assert not torch.equal(model[4].weight, _model()[4].weight)
    assert all(parameter.grad is None for parameter in model.parameters())
    found, norm = _step(update, _loss(model))
    assert math.isfinite(found)
    assert 0 < norm < math.inf


@pytest.mark.parametrize("skips", [False, True])
def test_an_infinite_loss_is_seen_before_gradients_that_are_finite(skips: bool) -> None:
    model = _model()
    loss, norm = _step(_fused(model, skips=skips), _loss(model) + math.inf)
    assert loss == math.inf
    assert math.isnan(norm)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), _model().parameters(), strict=True))


def test_an_infinite_loss_changes_nothing_where_such_steps_are_skipped() -> None:
    model = _model()
    loss, _ = _step(_fused(model, "AdamW", skips=True), _loss(model) * float("inf"))
    assert loss == float("inf")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), _model().parameters(), strict=True))


def test_weights_that_the_loss_does_not_depend_on_are_stepped_like_in_a_plain_run() -> None:
    fused, plain = _model(), _model()
    for model, update in ((fused, _fused(fused, "AdamW")), (plain, None)):
        update = update or Update(_stepping(plain, "AdamW"), OneOf(), 0.0)  # type: ignore[arg-type]
        _step(update, model[4](torch.ones(1, 8)).sum())
    assert not torch.equal(fused[0].weight, _model()[0].weight), "weight decay"
    assert all(torch.equal(a, b) for a, b in zip(fused.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", ["AdamW", "AdamW8bit", "Adafactor", "Lion", "AdamWScheduleFree", "SGD"])
def test_optimizers_that_can_step_weights_one_by_one_are_found(name: str) -> None:
    assert optimizers.plan(OptimizerConfig(optimizer_type=name)).steps_apart


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam", "DAdaptLion", "SparseAdam"])
def test_optimizers_that_need_all_weights_at_once_are_found(name: str) -> None:
    assert not optimizers.plan(OptimizerConfig(optimizer_type=name, learning_rate=1.0)).steps_apart


@pytest.mark.parametrize(
    ("name", "per_weight"), [("AdamW", 8.0), ("AdamW8bit", 2.06), ("Adafactor", 0.03), ("SGD", 0.0)]
)
def test_the_size_of_an_optimizers_state_is_known_before_training(name: str, per_weight: float) -> None:
    found = optimizers.plan(OptimizerConfig(optimizer_type=name)).state_bytes(10**6)
    assert found / 10**6 == pytest.approx(per_weight, abs=0.01)


def test_a_process_without_work_cannot_change_blocks_that_travel() -> None:
    run = Run("flux_train", "flux", [WholeModelConfig()])
    check_steps(run, Plan(4, 2, 8), 2, is_swapped=True)
    check_steps(run, Plan(5, 2, 8), 2, is_swapped=False)
    check_steps(run.__class__("flux_train_network", "flux", []), Plan(5, 2, 8), 2, is_swapped=True)
    with pytest.raises(UserError, match=r"with 2 processes .* has 1 of 5 batches"):
        check_steps(run, Plan(5, 2, 8), 2, is_swapped=True)


def test_small_changes_of_bfloat16_weights_arrive_on_average() -> None:
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=1e-4)
    update = Update(Stepping(optimizer, rounding=Rounding(3, [weight])), OneOf(), 0.0)  # type: ignore[arg-type]
    for number in range(1, 101):
        update.begin(Plan(1, 1, 100).step(number))
        update.accumulate(weight.float().sum())
        update.finish()
    # 100 changes of 1e-4, each a fortieth of the distance to the next number below 1.
    assert weight.float().mean().item() == pytest.approx(0.99, abs=2e-4)


def test_states_of_bfloat16_weights_are_float32_and_stay_with_their_weights() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight], lr=1e-4)
    update = Update(Stepping(optimizer, rounding=Rounding(3, [weight])), OneOf(), 0.0)  # type: ignore[arg-type]
    _step(update, weight.float().sum())  # type: ignore[arg-type]
    assert list(optimizer.state) == [weight]
    assert optimizer.param_groups[0]["params"] == [weight]
    assert optimizer.state[weight]["exp_avg"].dtype is torch.float32
