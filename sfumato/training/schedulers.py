"""Learning-rate schedules: the factor by which each group's own rate is multiplied at a step."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sfumato.config.schedule import ScheduleConfig
from sfumato.errors import UserError
from sfumato.training.optimizers import OptimizerPlan, parse_arguments

Factor = Callable[[int], float]

POLYNOMIAL_END_RATE = 1e-7


def build(
    config: ScheduleConfig,
    optimizer: torch.optim.Optimizer,
    plan: OptimizerPlan,
    learning_rate: float,
    num_steps: int,
) -> LRScheduler | None:
    """Make the schedule of a run of `num_steps` optimizer steps, or None where the optimizer needs none.

    Raises:
        UserError: the schedule's name is unknown, or its options contradict each other.
    """
    if plan.is_schedule_free:
        return None
    if plan.relative_step:
        from transformers.optimization import AdafactorSchedule

        return AdafactorSchedule(optimizer, learning_rate)
    _check_name(config)
    if config.lr_scheduler_type:
        return _foreign(config, optimizer)
    return LambdaLR(optimizer, factor(config, learning_rate, num_steps))


def describe(config: ScheduleConfig, plan: OptimizerPlan, learning_rate: float) -> str:
    """Return the schedule's name as adapter files record it."""
    return f"adafactor:{learning_rate}" if plan.relative_step else config.lr_scheduler


def check(config: ScheduleConfig, plan: OptimizerPlan, learning_rate: float) -> None:
    """Raise UserError if optimizer or schedule cannot be built, which one weight of no account tells."""
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    build(config, plan.build([{"params": [weight]}], learning_rate), plan, learning_rate, 1000)


def _check_name(config: ScheduleConfig) -> None:
    name = config.lr_scheduler
    if config.lr_scheduler_type:
        if config.lr_warmup_steps:
            raise UserError("--lr_warmup_steps has no effect with --lr_scheduler_type; remove one of them")
        return
    if name == "adafactor":
        raise UserError("--lr_scheduler adafactor needs --optimizer_type Adafactor with relative_step=True")
    if name not in FACTORS:
        raise UserError(f"--lr_scheduler is {name}; known are {', '.join(FACTORS)}")
    if name == "constant" and config.lr_warmup_steps:
        raise UserError(
            f"--lr_warmup_steps is {config.lr_warmup_steps} but --lr_scheduler constant has no warmup; "
            "use constant_with_warmup"
        )


def factor(config: ScheduleConfig, learning_rate: float, num_steps: int) -> Factor:
    """Return the factor by step of a run of `num_steps` steps; fractions of the run become steps here."""
    arguments = parse_arguments(config.lr_scheduler_args or (), "--lr_scheduler_args")
    warmup = _steps(config.lr_warmup_steps, num_steps)
    return FACTORS[config.lr_scheduler](config, arguments, learning_rate, warmup, num_steps)


def _steps(value: int | float, num_steps: int) -> int:
    return int(value * num_steps) if isinstance(value, float) and value < 1 else int(value)


def _foreign(config: ScheduleConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    module_name, _, class_name = config.lr_scheduler_type.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module_name or "torch.optim.lr_scheduler"), class_name)
        return kind(optimizer, **parse_arguments(config.lr_scheduler_args or (), "--lr_scheduler_args"))
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(f"--lr_scheduler_type is {config.lr_scheduler_type}: {error}") from error
    except TypeError as error:
        raise UserError(f"--lr_scheduler_args do not suit {class_name}: {error}") from error


def _with_warmup(decay: Callable[[float], float], warmup: int, num_steps: int) -> Factor:
    """Rise linearly from 0 for `warmup` steps, then follow `decay` of the progress 0..1 of the rest."""

    def at(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        return decay((step - warmup) / max(1, num_steps - warmup))

    return at


def _constant(_config: ScheduleConfig, _arguments: Any, _rate: float, warmup: int, num_steps: int) -> Factor:
    return _with_warmup(lambda progress: 1.0, warmup, num_steps)


def _linear(_config: ScheduleConfig, _arguments: Any, _rate: float, warmup: int, num_steps: int) -> Factor:
    return _with_warmup(lambda progress: max(0.0, 1.0 - progress), warmup, num_steps)


def _cosine(_config: ScheduleConfig, _arguments: Any, _rate: float, warmup: int, num_steps: int) -> Factor:
    return _with_warmup(lambda progress: _half_wave(progress, 0.5), warmup, num_steps)


def _cosine_with_restarts(
    config: ScheduleConfig, _arguments: Any, _rate: float, warmup: int, num_steps: int
) -> Factor:
    """Restart `lr_scheduler_num_cycles` times (SGDR, Loshchilov & Hutter 2017)."""
    cycles = config.lr_scheduler_num_cycles

    def decay(progress: float) -> float:
        return 0.0 if progress >= 1 else max(0.0, 0.5 * (1 + math.cos(math.pi * (cycles * progress % 1.0))))

    return _with_warmup(decay, warmup, num_steps)


def _cosine_with_min_lr(
    config: ScheduleConfig, _arguments: Any, _rate: float, warmup: int, num_steps: int
) -> Factor:
    lowest = config.lr_scheduler_min_lr_ratio or 0.0
    cycles = config.lr_scheduler_num_cycles / 2
    return _with_warmup(
        lambda progress: max(0.0, _half_wave(progress, cycles) * (1 - lowest) + lowest), warmup, num_steps
    )


def _half_wave(progress: float, cycles: float) -> float:
    return max(0.0, 0.5 * (1 + math.cos(math.pi * cycles * 2 * progress)))


def _polynomial(config: ScheduleConfig, _arguments: Any, rate: float, warmup: int, num_steps: int) -> Factor:
    """Fall from the rate to 1e-7 with the given power."""
    if rate <= POLYNOMIAL_END_RATE:
        raise UserError(
            f"--learning_rate is {rate}, and --lr_scheduler polynomial falls from it to "
            f"{POLYNOMIAL_END_RATE}; raise it"
        )
    end = POLYNOMIAL_END_RATE / rate
    power = config.lr_scheduler_power

    def decay(progress: float) -> float:
        return end if progress > 1 else (1 - end) * (1 - progress) ** power + end

    return _with_warmup(decay, warmup, num_steps)


def _inverse_sqrt(
    config: ScheduleConfig, _arguments: Any, _rate: float, warmup: int, num_steps: int
) -> Factor:
    timescale = config.lr_scheduler_timescale or warmup or 10_000

    def at(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        return 1.0 / math.sqrt((step + timescale - warmup) / timescale)

    return at


def _warmup_stable_decay(
    config: ScheduleConfig, _arguments: Any, _rate: float, warmup: int, num_steps: int
) -> Factor:
    """Stay at the full rate between a linear warmup and a cosine decay of `lr_decay_steps`."""
    decay_steps = _steps(config.lr_decay_steps, num_steps)
    stable_until = num_steps - decay_steps
    lowest = config.lr_scheduler_min_lr_ratio or 0.0
    cycles = config.lr_scheduler_num_cycles / 2

    def at(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        if step < stable_until:
            return 1.0
        if step < num_steps:
            progress = (step - stable_until) / max(1, decay_steps)
            return _half_wave(progress, cycles) * (1 - lowest) + lowest
        return lowest

    return at


def _piecewise_constant(
    _config: ScheduleConfig, arguments: Any, _rate: float, _warmup: int, _num_steps: int
) -> Factor:
    """Follow `step_rules='1:10,0.1:30,0.01'`: factor 1 before step 10, 0.1 before step 30, then 0.01."""
    rules = arguments.get("step_rules")
    if not isinstance(rules, str):
        raise UserError(
            "--lr_scheduler piecewise_constant needs --lr_scheduler_args \"step_rules='1:10,0.1'\""
        )
    try:
        *pieces, last = rules.split(",")
        steps = [(int(piece.split(":")[1]), float(piece.split(":")[0])) for piece in pieces]
        final = float(last)
    except (ValueError, IndexError):
        raise UserError(
            f"--lr_scheduler_args step_rules is {rules!r}; write it like '1:10,0.1:30,0.01'"
        ) from None

    def at(step: int) -> float:
        return next((value for until, value in steps if step < until), final)

    return at


FACTORS: dict[str, Callable[[ScheduleConfig, Any, float, int, int], Factor]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "constant": _constant,
    "constant_with_warmup": _constant,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
    "piecewise_constant": _piecewise_constant,
}
