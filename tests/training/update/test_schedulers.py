import re
from typing import Any

import pytest
import torch
from transformers import optimization

from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import HEARD_BY, ScheduleConfig
from sfumato.errors import UserError
from sfumato.training.update import optimizers, schedulers
from sfumato.training.update.rate_shapes import SHAPES
from tests.golden.derived import cases

CASES = cases("g_lr_seed")


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


@pytest.mark.parametrize(
    ("schedule", "arguments", "rate", "says"),
    [
        (ScheduleConfig(lr_scheduler="cosin"), (), 1e-4, "known are linear, cosine"),
        (ScheduleConfig(lr_scheduler="piecewise_constant"), (), 1e-4, "needs --lr_scheduler_args"),
        (ScheduleConfig(lr_scheduler="polynomial"), (), 0.0, "polynomial falls from it to 1e-07; raise it"),
        (ScheduleConfig(lr_scheduler_type="NoSuchLR"), (), 1e-4, "NoSuchLR"),
        (ScheduleConfig(), ("speed=3",), 1e-4, "speed, which AdamW does not know; it knows betas"),
    ],
)
def test_what_cannot_be_built_is_known_before_there_are_weights(
    schedule: ScheduleConfig, arguments: tuple[str, ...], rate: float, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        schedulers.check(schedule, optimizers.plan(OptimizerConfig(optimizer_args=arguments)), rate)


@pytest.mark.parametrize("name", ["Adafactor", "AdamWScheduleFree", "Prodigy", "SGDNesterov"])
def test_what_can_be_built_passes_the_check(name: str) -> None:
    schedulers.check(ScheduleConfig(), optimizers.plan(OptimizerConfig(optimizer_type=name)), 1.0)


def _theirs(name: str, warmup: int, **arguments: Any) -> list[float]:
    """Return the rates of a run of 100 steps under transformers' schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    make = optimization.TYPE_TO_SCHEDULER_FUNCTION[optimization.SchedulerType(name)]
    if name not in ("constant", "constant_with_warmup", "inverse_sqrt"):
        arguments["num_training_steps"] = 100
    if name != "constant":
        arguments["num_warmup_steps"] = warmup
    (at,) = make(optimizer, **arguments).lr_lambdas
    return [1e-3 * at(step) for step in range(101)]


@pytest.mark.parametrize("warmup", [0, 20])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("linear", {}),
        ("cosine", {"num_cycles": 1.5}),
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("polynomial", {"lr_end": 5e-4}),
        ("polynomial", {"lr_end": 1e-5, "power": 2.0}),
        ("constant_with_warmup", {}),
        ("inverse_sqrt", {"timescale": 7}),
        ("cosine_with_min_lr", {"min_lr": 2e-4}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.25, "num_cycles": 1.0}),
        ("warmup_stable_decay", {"num_decay_steps": 30, "warmup_type": "linear", "min_lr_ratio": 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 30, "decay_type": "linear"}),
        ("warmup_stable_decay", {"num_decay_steps": 30, "decay_type": "1-sqrt", "warmup_type": "cosine"}),
        ("warmup_stable_decay", {"num_decay_steps": 9, "warmup_type": "1-sqrt", "num_stable_steps": 25}),
        ("warmup_stable_decay", {"num_decay_steps": 30, "num_cycles": 1.5, "min_lr_ratio": 0.2}),
    ],
)
@pytest.mark.filterwarnings("ignore:Both num_training_steps")
def test_arguments_mean_what_they_mean_to_transformers(
    name: str, arguments: dict[str, Any], warmup: int
) -> None:
    if "min_lr_ratio" in arguments and "warmup_type" not in arguments and warmup:
        arguments = {**arguments, "warmup_type": "linear"}
    texts = tuple(f"{key}={value!r}" for key, value in arguments.items())
    config = ScheduleConfig(lr_scheduler=name, lr_scheduler_args=texts, lr_warmup_steps=warmup)
    plan = optimizers.plan(OptimizerConfig(learning_rate=1e-3))
    optimizer = plan.build([{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1e-3)
    scheduler = schedulers.build(config, optimizer, plan, 1e-3, 100)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
    ours = [1e-3 * scheduler.lr_lambdas[0](step) for step in range(101)]
    assert ours == pytest.approx(_theirs(name, warmup, **arguments), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "arguments", "options", "says"),
    [
        ("cosine", ("speed=1",), {}, "speed, which --lr_scheduler cosine does not know; it knows num_cycles"),
        ("constant", ("power=2",), {}, "--lr_scheduler constant does not know; it takes none"),
        ("cosine", ("last_epoch=5",), {}, r"last_epoch: where a run stands, its state \(--resume\)"),
        ("linear", ("num_warmup_steps=5",), {}, "give it as --lr_warmup_steps"),
        ("polynomial", ("lr_end='low'",), {}, "lr_end='low'; give a number, 0 or more"),
        ("polynomial", ("power=True",), {}, "power=True; give a number"),
        ("inverse_sqrt", ("timescale=0",), {}, "timescale=0; give a whole number, 1 or more"),
        ("warmup_stable_decay", ("decay_type='fast'",), {}, "give 'linear', 'cosine' or '1-sqrt'"),
        ("piecewise_constant", ("step_rules='1:x,2'",), {}, "step_rules='1:x,2'; give text like '1:10"),
        ("piecewise_constant", ("step_rules=3",), {}, "step_rules=3; give text like '1:10"),
        (
            *("cosine_with_restarts", ("num_cycles=3",), {"lr_scheduler_num_cycles": 2}),
            "num_cycles=3 and --lr_scheduler_num_cycles 2 say the same; give one of them",
        ),
        (
            *("cosine_with_min_lr", ("min_lr=1e-5",), {"lr_scheduler_min_lr_ratio": 0.1}),
            "min_lr=1e-05 and a smallest rate as a share .0.1: .* contradict each other",
        ),
        ("polynomial", ("lr_end=1e-3",), {}, "polynomial falls from it to 0.001; raise it, or lower lr_end"),
    ],
)
def test_an_argument_that_will_not_do_is_named_in_one_line(
    name: str, arguments: tuple[str, ...], options: dict[str, Any], says: str
) -> None:
    config = ScheduleConfig(lr_scheduler=name, lr_scheduler_args=arguments, **options)
    with pytest.raises(UserError, match=says) as raised:
        schedulers.check(config, optimizers.plan(OptimizerConfig()), 1e-4)
    assert "\n" not in str(raised.value)


_ODD_NAMES = ("é.x", "torch.optim.StepLR")
_NO_SCHEDULES = ("torch.nn.Linear", "builtins.print", "os.getcwd", "os.fspath", "os.path", "sys.exit")


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        (
            "CosineAnnealingLR",
            ("T_max=9", "speed=1"),
            "speed, which CosineAnnealingLR does not know; it knows T_max",
        ),
        ("CosineAnnealingLR", ("T_max=9", "last_epoch=3"), "last_epoch: where a run stands"),
        ("CosineAnnealingLR", (), "do not suit CosineAnnealingLR: .*T_max"),
        ("CosineAnnealingLR", ("T_max='x'",), "failed|do not suit|cannot step"),
        ("ReduceLROnPlateau", (), "ReduceLROnPlateau cannot step by itself: .*metrics"),
        ("no_such_package.Schedule", (), "no_such_package.Schedule cannot be found: .*No module named"),
        (
            "StepLR",
            ("step_size=0",),
            "StepLR --lr_scheduler_args step_size=0 cannot step by itself: .*by zero",
        ),
        ("StepLR", ("step_size=1", "gamma=1e400"), "makes the learning rate inf"),
        *((name, (), f"--lr_scheduler_type {re.escape(name)} cannot be found") for name in _ODD_NAMES),
        *((name, (), f"--lr_scheduler_type {name} is no learning-rate schedule") for name in _NO_SCHEDULES),
    ],
)
def test_a_schedule_of_others_that_fails_is_one_line(
    kind: str, arguments: tuple[str, ...], says: str
) -> None:
    config = ScheduleConfig(lr_scheduler="cosine", lr_scheduler_type=kind, lr_scheduler_args=arguments)
    with pytest.raises(UserError, match=says) as raised:
        schedulers.check(config, optimizers.plan(OptimizerConfig()), 1e-4)
    assert "\n" not in str(raised.value)


def test_a_schedule_that_ends_before_the_run_does_is_refused_before_it() -> None:
    arguments = ("max_lr=1e-3", "total_steps=20")
    config = ScheduleConfig(lr_scheduler_type="OneCycleLR", lr_scheduler_args=arguments)
    plan = optimizers.plan(OptimizerConfig())
    schedulers.check_course(config, plan, 1e-4, 19)
    with pytest.raises(UserError, match=r"OneCycleLR --lr_scheduler_args .* cannot step by itself: .*20"):
        schedulers.check_course(config, plan, 1e-4, 21)


def test_a_function_that_makes_a_schedule_is_as_good_as_a_class() -> None:
    config = ScheduleConfig(lr_scheduler_type="transformers.get_constant_schedule")
    schedulers.check(config, optimizers.plan(OptimizerConfig()), 1e-4)


@pytest.mark.parametrize(
    ("optimizer", "options", "idle"),
    [
        (
            "AdamW",
            {"lr_scheduler": "cosine", "lr_scheduler_args": ("num_cycles=1",), "lr_warmup_steps": 5},
            [],
        ),
        (
            *("AdamWScheduleFree", {"lr_scheduler": "cosine"}),
            [
                "--lr_scheduler cosine has no effect with --optimizer_type AdamWScheduleFree, which needs no "
                "schedule"
            ],
        ),
        ("Adafactor", {"lr_scheduler": "adafactor", "lr_scheduler_args": ()}, []),
        (
            *("Adafactor", {"lr_scheduler_args": ("lr_end=1",)}),
            [
                "--lr_scheduler_args lr_end=1 has no effect with --optimizer_type Adafactor, which sets its "
                "own rates (relative_step=True)"
            ],
        ),
    ],
)
def test_options_about_schedules_that_an_optimizer_does_not_need_are_said(
    optimizer: str, options: dict[str, Any], idle: list[str]
) -> None:
    plan = optimizers.plan(OptimizerConfig(optimizer_type=optimizer))
    assert schedulers.settings_without_effect(ScheduleConfig(**options), plan) == idle


def test_the_rules_of_options_know_which_shapes_listen() -> None:
    heard = {option for shape in SHAPES.values() for option in shape.options} - {"lr_warmup_steps"}
    assert {
        option: tuple(name for name, shape in SHAPES.items() if option in shape.options) for option in heard
    } == HEARD_BY
    unwarmed = [name for name, shape in SHAPES.items() if not shape.has_warmup]
    assert unwarmed == ["constant", "piecewise_constant"]
