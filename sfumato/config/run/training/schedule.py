"""How the learning rate changes during a run."""

from collections.abc import Mapping
from dataclasses import dataclass

from sfumato.config.checks import at_least, importable
from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule."""

    lr_scheduler: str = "constant"
    """Shape: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial, inverse_sqrt,
    cosine_with_min_lr, warmup_stable_decay, piecewise_constant or adafactor."""

    lr_scheduler_type: str = ""
    """Scheduler class, as `module.Class` or a name in torch.optim.lr_scheduler; wins over the shape."""

    lr_scheduler_args: tuple[str, ...] | None = None
    """Arguments of the shape or class as `name=value`, values in Python's notation: `lr_end=1e-5`."""

    lr_warmup_steps: int | float = 0
    """Optimizer steps over which the rate rises from 0; `10%` or a value below 1 is a share of the run."""

    lr_decay_steps: int | float = 0
    """Optimizer steps of decay, for warmup_stable_decay; `10%` or a value below 1 is a share of the run."""

    lr_scheduler_num_cycles: int = 1
    """Number of restarts of cosine_with_restarts; twice the number of waves of the other cosines."""

    lr_scheduler_power: float = 1
    """Exponent of the polynomial shape; 1 is a straight line."""

    lr_scheduler_timescale: int | None = None
    """Time constant of inverse_sqrt, in steps; the number of warmup steps when not given."""

    lr_scheduler_min_lr_ratio: float | None = None
    """Smallest rate, as a share of the learning rate, for cosine_with_min_lr and warmup_stable_decay."""

    def __post_init__(self) -> None:
        at_least(
            self, 0, "lr_warmup_steps", "lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_timescale"
        )
        at_least(self, 0, "lr_scheduler_power", "lr_scheduler_min_lr_ratio")
        importable(self, "lr_scheduler_type")


HEARD_BY: Mapping[str, tuple[str, ...]] = {
    "lr_decay_steps": ("warmup_stable_decay",),
    "lr_scheduler_num_cycles": ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"),
    "lr_scheduler_power": ("polynomial",),
    "lr_scheduler_timescale": ("inverse_sqrt",),
    "lr_scheduler_min_lr_ratio": ("cosine_with_min_lr", "warmup_stable_decay"),
}
"""The shapes of `lr_scheduler` that listen to an option; to a warmup nearly all do."""

RULES = (
    idle(["lr_scheduler", *HEARD_BY], among=(given("lr_scheduler_type"),)),
    idle(["lr_warmup_steps"], among=(given("lr_scheduler", "piecewise_constant"),)),
    *(idle([name], given("lr_scheduler", *shapes)) for name, shapes in HEARD_BY.items()),
)
"""What these options mean to others."""
