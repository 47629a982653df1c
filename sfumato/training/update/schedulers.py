"""Learning-rate schedules: the factor by which each group's own rate is multiplied at a step."""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import fields

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.errors import UserError, guest_code
from sfumato.training.update.argument_values import parse_arguments, require_accepted
from sfumato.training.update.optimizers import OptimizerPlan
from sfumato.training.update.rate_shapes import OPTION, SHAPES, factor

_MOST_WALKED = 10_000
"""Steps of a schedule that are tried: a tenth of a second."""


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
    arguments = parse_arguments(config.lr_scheduler_args or (), OPTION)
    return LambdaLR(optimizer, factor(config, arguments, learning_rate, num_steps))


def describe(config: ScheduleConfig, plan: OptimizerPlan, learning_rate: float) -> str:
    """Return the schedule's name as adapter files record it."""
    return f"adafactor:{learning_rate}" if plan.relative_step else config.lr_scheduler


def check(config: ScheduleConfig, plan: OptimizerPlan, learning_rate: float) -> None:
    """Raise UserError if optimizer or schedule cannot be built, which one weight of no account tells."""
    _walk(config, plan, learning_rate, 1000, 1)


def check_course(config: ScheduleConfig, plan: OptimizerPlan, learning_rate: float, num_steps: int) -> None:
    """Raise UserError if a class of the user's cannot be followed to the end of a run of so many steps."""
    if config.lr_scheduler_type:
        _walk(config, plan, learning_rate, num_steps, min(num_steps, _MOST_WALKED))


def _walk(config: ScheduleConfig, plan: OptimizerPlan, rate: float, num_steps: int, num_walked: int) -> None:
    """Take the first steps of a schedule of `num_steps` with a weight of no account."""
    optimizer = plan.check(rate)
    schedule = build(config, optimizer, plan, rate, num_steps)
    if schedule is None:
        return
    with guest_code(f"{_asked(config)} cannot step by itself"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no weight is changed here
        for _ in range(num_walked):
            schedule.step()
            _require_numbers(config, optimizer)


def _require_numbers(config: ScheduleConfig, optimizer: torch.optim.Optimizer) -> None:
    rates = [float(group["lr"]) for group in optimizer.param_groups if group["lr"] is not None]
    if not all(map(math.isfinite, rates)):
        raise UserError(f"{_asked(config)} makes the learning rate {rates[0]}; change {OPTION}")


def settings_without_effect(config: ScheduleConfig, plan: OptimizerPlan) -> list[str]:
    """Return one line for each option that is not at its default, and means nothing to the optimizer."""
    reason, own = _why_idle(plan), set[str]()
    if reason is None:
        return []
    if plan.relative_step and config.lr_scheduler == "adafactor":
        own = {"lr_scheduler"}
    return [
        f"--{field.name} {_shown(getattr(config, field.name))} has no effect with {reason}"
        for field in fields(config)
        if field.name not in own and getattr(config, field.name) not in (field.default, ())
    ]


def _why_idle(plan: OptimizerPlan) -> str | None:
    """Return what leaves a schedule nothing to do, or None."""
    if plan.is_schedule_free:
        return f"--optimizer_type {plan.kind.__name__}, which needs no schedule"
    if plan.relative_step:
        return f"--optimizer_type {plan.kind.__name__}, which sets its own rates (relative_step=True)"
    return None


def _asked(config: ScheduleConfig) -> str:
    """Return the options that ask for a schedule."""
    kind = config.lr_scheduler_type
    named = f"--lr_scheduler_type {kind}" if kind else f"--lr_scheduler {config.lr_scheduler}"
    told = _shown(config.lr_scheduler_args or ())
    return f"{named} {OPTION} {told}" if told else named


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_name(config: ScheduleConfig) -> None:
    name = config.lr_scheduler
    if config.lr_scheduler_type:
        if config.lr_warmup_steps:
            raise UserError("--lr_warmup_steps has no effect with --lr_scheduler_type; remove one of them")
        return
    if name == "adafactor":
        raise UserError("--lr_scheduler adafactor needs --optimizer_type Adafactor with relative_step=True")
    if name not in SHAPES:
        raise UserError(f"--lr_scheduler is {name}; known are {', '.join(SHAPES)}")
    if name == "constant" and config.lr_warmup_steps:
        raise UserError(
            f"--lr_warmup_steps is {config.lr_warmup_steps} but --lr_scheduler constant has no warmup; "
            "use constant_with_warmup"
        )


def _foreign(config: ScheduleConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Make a schedule of a class that torch or anybody else offers."""
    kind = _find(config.lr_scheduler_type)
    arguments = parse_arguments(config.lr_scheduler_args or (), OPTION)
    if "last_epoch" in arguments:
        raise UserError(
            f"{OPTION} holds last_epoch: where a run stands, its state (--resume) says; leave it out"
        )
    require_accepted(kind, arguments, OPTION, ("optimizer", "last_epoch"))
    told = _shown(config.lr_scheduler_args or ())
    with guest_code(f"{OPTION} {told} do not suit {config.lr_scheduler_type}"):
        schedule = kind(optimizer, **arguments)
    if not isinstance(schedule, LRScheduler):
        raise UserError(_no_schedule(config.lr_scheduler_type))
    return schedule


def _find(path: str) -> Callable[..., object]:
    """Return a class of schedules, or a function that may make one."""
    module_name, _, name = path.rpartition(".")
    with guest_code(f"--lr_scheduler_type {path} cannot be found", "give package.module.Class"):
        kind = getattr(importlib.import_module(module_name or "torch.optim.lr_scheduler"), name)
    is_possible = issubclass(kind, LRScheduler) if inspect.isclass(kind) else inspect.isfunction(kind)
    if not is_possible:
        raise UserError(_no_schedule(path))
    return kind


def _no_schedule(path: str) -> str:
    return (
        f"--lr_scheduler_type {path} is no learning-rate schedule; give a subclass of "
        "torch.optim.lr_scheduler.LRScheduler, or a function that makes one"
    )
