"""The named shapes of learning-rate schedules: factors by step, and the arguments that each one takes.

Shapes, arguments and their defaults are those of transformers' schedules, which sd-scripts hands these
arguments to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.errors import UserError

Factor = Callable[[int], float]

OPTION = "--lr_scheduler_args"


@dataclass(frozen=True)
class Course:
    """The run that a schedule is for.

    Attributes:
        rate: the learning rate of whatever has none of its own.
        warmup: steps over which the rate rises from 0.
        num_steps: optimizer steps in all.
    """

    rate: float
    warmup: int
    num_steps: int


@dataclass(frozen=True)
class Argument:
    """One argument of a shape.

    Attributes:
        check: returns the value as the shape takes it; raises ValueError if it will not do.
        expected: what `check` takes, for messages.
        default: what holds where neither the argument nor its option is given.
        option: the option of the run that says the same, "" where there is none.
        convert: makes the argument's value of the option's, for a run of so many steps.
    """

    check: Callable[[Any], Any]
    expected: str
    default: Any = None
    option: str = ""
    convert: Callable[[Any, int], Any] = lambda value, num_steps: value


@dataclass(frozen=True)
class Shape:
    """One named schedule.

    Attributes:
        make: returns the factor of a course, given a value for every argument.
        has_warmup: whether it listens to `--lr_warmup_steps`.
    """

    make: Callable[..., Factor]
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    has_warmup: bool = True

    @property
    def options(self) -> set[str]:
        """The options, besides its name and arguments, that it listens to."""
        own = {argument.option for argument in self.arguments.values() if argument.option}
        return own | ({"lr_warmup_steps"} if self.has_warmup else set())


def factor(config: ScheduleConfig, given: Mapping[str, Any], rate: float, num_steps: int) -> Factor:
    """Return the factor by step of a run of `num_steps` steps; fractions of the run become steps here.

    Args:
        given: the arguments by name.

    Raises:
        UserError: an argument is not known to the shape, will not do, or says something else than an option.
    """
    name = config.lr_scheduler
    shape = SHAPES[name]
    _require_known(name, shape, given)
    values = {
        key: _value(config, key, argument, given, num_steps) for key, argument in shape.arguments.items()
    }
    return shape.make(Course(rate, _steps(config.lr_warmup_steps, num_steps), num_steps), **values)


def _require_known(name: str, shape: Shape, given: Mapping[str, Any]) -> None:
    for key in given:
        if key in _ELSEWHERE:
            raise UserError(f"{OPTION} holds {key}: {_ELSEWHERE[key]}")
        if key not in shape.arguments:
            known = f"it knows {', '.join(shape.arguments)}" if shape.arguments else "it takes none"
            raise UserError(f"{OPTION} holds {key}, which --lr_scheduler {name} does not know; {known}")


def _value(
    config: ScheduleConfig, key: str, argument: Argument, given: Mapping[str, Any], num_steps: int
) -> Any:
    option = argument.option
    asked = getattr(config, option) if option else None
    is_asked = bool(option) and asked != getattr(ScheduleConfig, option)
    if key not in given:
        return argument.convert(asked, num_steps) if option and asked is not None else argument.default
    if is_asked:
        raise UserError(
            f"{OPTION} {key}={given[key]!r} and --{option} {asked} say the same; give one of them"
        )
    try:
        return argument.check(given[key])
    except ValueError:
        raise UserError(f"{OPTION} holds {key}={given[key]!r}; give {argument.expected}") from None


def _steps(value: int | float, num_steps: int) -> int:
    return int(value * num_steps) if isinstance(value, float) and value < 1 else int(value)


def _with_warmup(decay: Callable[[float], float], course: Course) -> Factor:
    """Rise linearly from 0 over the warmup, then follow `decay` of the progress 0..1 of the rest."""
    warmup, rest = course.warmup, course.num_steps - course.warmup

    def at(step: int) -> float:
        return step / max(1, warmup) if step < warmup else decay((step - warmup) / max(1, rest))

    return at


def _constant(course: Course) -> Factor:
    return _with_warmup(lambda progress: 1.0, course)


def _linear(course: Course) -> Factor:
    return _with_warmup(lambda progress: max(0.0, 1.0 - progress), course)


def _cosine(course: Course, *, num_cycles: float) -> Factor:
    return _with_warmup(lambda progress: _wave(progress, num_cycles), course)


def _cosine_with_restarts(course: Course, *, num_cycles: float) -> Factor:
    """Restart `num_cycles` times (SGDR, Loshchilov & Hutter 2017)."""

    def decay(progress: float) -> float:
        return (
            0.0 if progress >= 1 else max(0.0, 0.5 * (1 + math.cos(math.pi * (num_cycles * progress % 1.0))))
        )

    return _with_warmup(decay, course)


def _cosine_with_min_lr(
    course: Course, *, num_cycles: float, min_lr_rate: float | None, min_lr: float | None
) -> Factor:
    if min_lr is not None and min_lr_rate is not None:
        raise UserError(
            f"{OPTION} min_lr={min_lr} and a smallest rate as a share ({min_lr_rate}: min_lr_rate, or "
            "--lr_scheduler_min_lr_ratio) contradict each other; give one of them"
        )
    lowest = (min_lr_rate or 0.0) if min_lr is None else _share(min_lr, course, "min_lr")
    return _with_warmup(lambda progress: max(0.0, _between(lowest, _wave(progress, num_cycles))), course)


def _polynomial(course: Course, *, lr_end: float, power: float) -> Factor:
    """Fall from the rate to `lr_end` with the given power."""
    if course.rate <= lr_end:
        raise UserError(
            f"--learning_rate is {course.rate}, and --lr_scheduler polynomial falls from it to {lr_end}; "
            f"raise it, or lower lr_end in {OPTION}"
        )
    end = _share(lr_end, course, "lr_end")
    return _with_warmup(
        lambda progress: end if progress > 1 else _between(end, (1 - progress) ** power), course
    )


def _inverse_sqrt(course: Course, *, timescale: int | None) -> Factor:
    scale, warmup = timescale or course.warmup or 10_000, course.warmup

    def at(step: int) -> float:
        return step / max(1, warmup) if step < warmup else 1.0 / math.sqrt((step + scale - warmup) / scale)

    return at


def _warmup_stable_decay(
    course: Course,
    *,
    num_decay_steps: int,
    num_stable_steps: int | None,
    warmup_type: str | None,
    decay_type: str,
    min_lr_ratio: float,
    num_cycles: float,
) -> Factor:
    """Stay at the full rate between warmup and decay, which is a cosine unless `decay_type` says otherwise.

    The warmup rises from 0 where no `warmup_type` is given, and from the smallest rate where one is: versions
    that know the argument do so.
    """
    warmup = course.warmup
    if num_stable_steps is None:
        num_stable_steps = course.num_steps - warmup - num_decay_steps
    stable_until = warmup + num_stable_steps
    start, rise = (0.0, "linear") if warmup_type is None else (min_lr_ratio, warmup_type)

    def at(step: int) -> float:
        if step < warmup:
            return max(0.0, _between(start, _RISES[rise](step / max(1, warmup))))
        if step < stable_until:
            return 1.0
        if step < stable_until + num_decay_steps:
            progress = (step - stable_until) / max(1, num_decay_steps)
            return max(0.0, _between(min_lr_ratio, _FALLS[decay_type](progress, num_cycles)))
        return min_lr_ratio

    return at


def _piecewise_constant(_course: Course, *, step_rules: str | None) -> Factor:
    """Follow `step_rules='1:10,0.1:30,0.01'`: factor 1 before step 10, 0.1 before step 30, then 0.01."""
    if step_rules is None:
        raise UserError(f"--lr_scheduler piecewise_constant needs {OPTION} \"step_rules='1:10,0.1'\"")
    steps, final = _rules(step_rules)
    return lambda step: next((value for until, value in steps if step < until), final)


def _rules(text: Any) -> tuple[list[tuple[int, float]], float]:
    """Return (step, factor before it) for each piece, and the factor of the rest."""
    try:
        *pieces, last = text.split(",")
        steps = [(int(piece.split(":")[1]), float(piece.split(":")[0])) for piece in pieces]
        return steps, float(last)
    except (AttributeError, IndexError):
        raise ValueError(text) from None


def _wave(progress: float, cycles: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * cycles * 2 * progress))


def _between(low: float, share: float) -> float:
    """Return what lies that share of the way from `low` to 1."""
    return (1 - low) * share + low


def _share(rate: float, course: Course, key: str) -> float:
    if not course.rate:
        raise UserError(f"{OPTION} {key}={rate} needs a --learning_rate above 0, which it is compared with")
    return rate / course.rate


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(value)
    return value


def _count(value: Any) -> int:
    if _number(value) != int(value):
        raise ValueError(value)
    return int(value)


def _positive_count(value: Any) -> int:
    if _count(value) < 1:
        raise ValueError(value)
    return int(value)


def _choice(names: Mapping[str, Any]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(value)
        return value

    return check


def _checked_rules(value: Any) -> str:
    _rules(value)
    return value


_RISES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1 - math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1 - math.sqrt(1 - progress),
}
_FALLS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, _cycles: 1 - progress,
    "cosine": _wave,
    "1-sqrt": lambda progress, _cycles: 1 - math.sqrt(progress),
}

_KINDS = "'linear', 'cosine' or '1-sqrt'"
_NUMBER, _COUNT = "a number, 0 or more", "a whole number, 0 or more"
_MIN_SHARE = Argument(_number, _NUMBER, option="lr_scheduler_min_lr_ratio")
_WAVES = Argument(_number, _NUMBER, 0.5, "lr_scheduler_num_cycles", lambda value, _: value / 2)
"""A whole wave is a fall and a rise, so an option that counts falls is halved."""

_ELSEWHERE = {
    "last_epoch": "where a run stands, its state (--resume) or --initial_step says; leave it out",
    "num_warmup_steps": "give it as --lr_warmup_steps",
    "num_training_steps": "give it as --max_train_steps or --max_train_epochs",
}
"""Arguments of transformers' functions that a run settles otherwise."""

SHAPES: Mapping[str, Shape] = {
    "linear": Shape(_linear),
    "cosine": Shape(_cosine, {"num_cycles": Argument(_number, _NUMBER, 0.5)}),
    "cosine_with_restarts": Shape(
        _cosine_with_restarts, {"num_cycles": Argument(_number, _NUMBER, option="lr_scheduler_num_cycles")}
    ),
    "polynomial": Shape(
        _polynomial,
        {
            "lr_end": Argument(_number, _NUMBER, 1e-7),
            "power": Argument(_number, _NUMBER, option="lr_scheduler_power"),
        },
    ),
    "constant": Shape(_constant, has_warmup=False),
    "constant_with_warmup": Shape(_constant),
    "inverse_sqrt": Shape(
        _inverse_sqrt,
        {
            "timescale": Argument(
                _positive_count, "a whole number, 1 or more", option="lr_scheduler_timescale"
            )
        },
    ),
    "cosine_with_min_lr": Shape(
        _cosine_with_min_lr,
        {"num_cycles": _WAVES, "min_lr": Argument(_number, _NUMBER), "min_lr_rate": _MIN_SHARE},
    ),
    "warmup_stable_decay": Shape(
        _warmup_stable_decay,
        {
            "num_decay_steps": Argument(_count, _COUNT, 0, "lr_decay_steps", _steps),
            "num_stable_steps": Argument(_count, _COUNT),
            "warmup_type": Argument(_choice(_RISES), _KINDS),
            "decay_type": Argument(_choice(_FALLS), _KINDS, "cosine"),
            "min_lr_ratio": Argument(_number, _NUMBER, 0.0, "lr_scheduler_min_lr_ratio"),
            "num_cycles": _WAVES,
        },
    ),
    "piecewise_constant": Shape(
        _piecewise_constant,
        {"step_rules": Argument(_checked_rules, "text like '1:10,0.1:30,0.01'")},
        has_warmup=False,
    ),
}
"""By the names of `--lr_scheduler`."""
