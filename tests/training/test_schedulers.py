import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.config.optimizer import OptimizerConfig
from sfumato.config.schedule import ScheduleConfig
from sfumato.errors import UserError
from sfumato.training import optimizers, schedulers

RECORDED = Path(__file__).parents[1] / "golden" / "learning_rates.json.gz"
CASES = json.loads(gzip.decompress(RECORDED.read_bytes()))["cases"]


def _rates(case: dict[str, Any]) -> tuple[list[float], float]:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in case["base_lrs"]]
    plan = optimizers.plan(OptimizerConfig(learning_rate=1e-4))
    optimizer = plan.build(groups, 1e-4)
    settings = {key: value for key, value in case["settings"].items() if value is not None}
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    total = case["max_train_steps"] * case["num_processes"]
    scheduler = schedulers.build(ScheduleConfig(**settings), optimizer, plan, 1e-4, total)
    assert scheduler is not None
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(case["max_train_steps"]):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates, optimizer.param_groups[1]["lr"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_rates_equal_those_of_sd_scripts(case: dict[str, Any]) -> None:
    if case["error"]:
        with pytest.raises(UserError, match="constant_with_warmup"):
            _rates(case)
        return
    rates, last_of_second = _rates(case)
    assert rates == pytest.approx(case["lr_group0"], rel=1e-6, abs=1e-12)
    assert last_of_second == pytest.approx(case["lr_group1_last"], rel=1e-6, abs=1e-12)


def test_every_recorded_schedule_was_compared() -> None:
    assert len(CASES) == 39


@pytest.mark.parametrize(
    ("schedule", "arguments", "rate", "says"),
    [
        (ScheduleConfig(lr_scheduler="cosin"), (), 1e-4, "known are linear, cosine"),
        (ScheduleConfig(lr_scheduler="piecewise_constant"), (), 1e-4, "needs --lr_scheduler_args"),
        (ScheduleConfig(lr_scheduler="polynomial"), (), 0.0, "polynomial falls from it to 1e-07; raise it"),
        (ScheduleConfig(lr_scheduler_type="NoSuchLR"), (), 1e-4, "NoSuchLR"),
        (ScheduleConfig(), ("speed=3",), 1e-4, "--optimizer_args do not suit AdamW"),
    ],
)
def test_what_cannot_be_built_is_known_before_there_are_weights(
    schedule: ScheduleConfig, arguments: tuple[str, ...], rate: float, says: str
) -> None:
    plan = optimizers.plan(OptimizerConfig(optimizer_args=arguments))
    with pytest.raises(UserError, match=says):
        schedulers.check(schedule, plan, rate)


@pytest.mark.parametrize("name", ["Adafactor", "AdamWScheduleFree", "Prodigy", "SGDNesterov"])
def test_what_can_be_built_passes_the_check(name: str) -> None:
    schedulers.check(ScheduleConfig(), optimizers.plan(OptimizerConfig(optimizer_type=name)), 1.0)
