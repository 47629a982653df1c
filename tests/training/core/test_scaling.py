"""Loss scaling of float16 weights."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.training.core.plan import Plan
from sfumato.training.core.precision import Precision, for_device, precision_for
from sfumato.training.core.scaling import HalfScaler, Scaler
from sfumato.training.update.optimizer_step import Update
from sfumato.training.update.stepping import Stepping

STEP = Plan(1, 1, 1).step(1)

HALF = Precision(torch.device("cuda"), torch.float16, torch.float16)


@dataclass
class Alone:
    """One process."""

    def sum_(self, tensor: Tensor) -> None:
        """Sum over one process."""


def update_of(weight: nn.Parameter, scaler: Scaler, optimizer: Any = None, **options: Any) -> Update:
    optimizer = optimizer or torch.optim.SGD([weight], lr=1.0)
    halving = LambdaLR(optimizer, lambda step: 0.5**step)
    return Update(Stepping(optimizer, halving), Alone(), 0.0, scaler, **options)  # type: ignore[arg-type]


def step(update: Update, weight: nn.Parameter, slope: float) -> Tensor:
    """Take a step along a slope; return loss and gradient norm."""
    update.begin(STEP)
    update.accumulate((weight * slope).sum().float())
    return update.finish()


def test_gradients_that_float16_cannot_hold_arrive_in_the_weights() -> None:
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    update = update_of(weight, HalfScaler(2.0**10))
    update.begin(STEP)
    # In the backward pass the factor 1e-4 meets a gradient of 1e-4: 1e-8 alone would be zero in float16.
    update.accumulate(((weight * 1e-4) * 1e-4).float().sum() * 16)
    loss, norm = update.finish().tolist()
    assert (loss, norm) == (0.0, pytest.approx(2 * 1.6e-7, rel=0.3))
    assert weight.detach().float().tolist() == [pytest.approx(-1.6e-7, rel=0.3)] * 4


def test_an_overflow_skips_the_step_and_lowers_the_scale_until_it_fits() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float16))
    scaler = HalfScaler(2.0**12)
    update = update_of(weight, scaler)
    taken, norms = [], []
    for _ in range(5):
        _, norm = step(update, weight, 64.0).tolist()  # times 2^10 or more: infinite in float16
        norms.append(norm)
        taken.append(weight.item() != 0)
        if taken[-1]:
            break
    assert taken == [False, False, False, True]
    assert norms == [0.0, 0.0, 0.0, 64.0]  # an overflow is no failure
    assert scaler.state_dict() == {"scale": 2.0**9, "num_good": 1}
    assert weight.item() == -64.0


FUSED = functools.partial(torch.optim.AdamW, fused=True)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, FUSED])
@pytest.mark.parametrize("scaler", [HalfScaler(4.0), torch.amp.GradScaler("cpu", init_scale=4.0), None])
def test_the_schedule_waits_while_steps_are_skipped(scaler: Any, kind: Any) -> None:
    """And PyTorch does not warn, which would fail here, of a schedule that goes before its optimizer."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = kind([weight], lr=0.5)
    update = update_of(weight, scaler, optimizer, skips_nonfinite=True)
    rates, values = [], []
    for slope in (float("inf"), float("nan"), 1.0, float("inf"), 1.0):
        step(update, weight, slope)
        rates.append(update.stepping.rates()[0].scheduled)
        values.append(weight.item())
    assert rates == [0.5, 0.5, 0.25, 0.25, 0.125]
    assert values[0] == values[1] == 1.0
    assert values[2] == values[3] != values[1]


def test_the_scale_rises_after_a_while_and_survives_a_state() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float16))
    scaler = HalfScaler(4.0, interval=2)
    for _ in range(3):
        step(update_of(weight, scaler), weight, 1.0)
    assert scaler.state_dict() == {"scale": 8.0, "num_good": 1}
    again = HalfScaler(interval=2)
    again.load_state_dict(scaler.state_dict())
    step(update_of(weight, again), weight, 1.0)
    assert again.state_dict() == {"scale": 16.0, "num_good": 0}


def test_float16_weights_get_a_scaler_that_takes_them() -> None:
    assert isinstance(HALF.scaler(), HalfScaler)
    assert Precision(torch.device("cpu"), torch.bfloat16, torch.bfloat16).scaler() is None
    mixed = Precision(torch.device("cpu"), torch.float16, torch.float32).scaler()
    assert isinstance(mixed, torch.amp.GradScaler)
    asked = PrecisionConfig(mixed_precision="fp16", full_fp16=True)
    assert precision_for(asked, torch.device("cuda")) == HALF
    with pytest.raises(UserError, match="fp16, which a CPU cannot train in"):
        precision_for(asked, torch.device("cpu"))


def test_a_file_that_asks_a_processor_for_float16_gets_bfloat16() -> None:
    asked = PrecisionConfig(mixed_precision="fp16", full_fp16=True)
    names = frozenset({"mixed_precision", "full_fp16"})
    from_file = Run("train", "fake", [asked], from_file=names)
    run, (line,) = for_device(from_file, torch.device("cpu"))
    assert run[PrecisionConfig] == PrecisionConfig(mixed_precision="bf16", full_bf16=True)
    assert "bf16 is used instead" in line
    assert for_device(from_file, torch.device("cuda")) == (from_file, [])
    for kept in (frozenset(), names - {"full_fp16"}):
        typed = Run("train", "fake", [asked], from_file=kept)
        assert for_device(typed, torch.device("cpu")) == (typed, [])


def test_an_optimizer_that_would_divide_by_zero_in_float16_is_refused() -> None:
    with pytest.raises(UserError, match="--full_fp16 with AdamW: eps 1e-08 is too small for float16"):
        HALF.check_optimizer(torch.optim.AdamW, {})
    HALF.check_optimizer(torch.optim.AdamW, {"eps": 1e-4})
    HALF.check_optimizer(torch.optim.SGD, {})
    Precision(torch.device("cuda"), torch.float16, torch.float32).check_optimizer(torch.optim.AdamW, {})
    weight = nn.Parameter(torch.ones(3, dtype=torch.float16))
    weight.grad = torch.tensor([0, 1e-4, 1.0]).half()
    torch.optim.AdamW([weight], lr=1e-2, eps=1e-4).step()
    assert weight.isfinite().all()
    torch.optim.AdamW([weight], lr=1e-2).step()
    assert not weight.isfinite().all()
