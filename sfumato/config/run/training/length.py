"""How long a run is, and where it starts."""

from dataclasses import dataclass

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class LengthConfig:
    """Length of the run."""

    max_train_steps: int = 1600
    """Optimizer steps in all."""

    max_train_epochs: int | None = None
    """Passes over the data in all; wins over `max_train_steps`."""

    seed: int | None = None
    """Seed of everything random. When not given one is drawn, shown and recorded."""

    initial_epoch: int | None = None
    """Epoch to start in, from 1, where training goes on from earlier weights."""

    initial_step: int | None = None
    """Step to start at, from 0; wins over `initial_epoch`. A resumed state knows its own."""

    skip_until_initial_step: bool = False
    """Begin with `initial_step` or `initial_epoch` exactly; otherwise only the epoch's number moves on."""

    gradient_accumulation_steps: int = 1
    """Batches whose gradients are averaged into one optimizer step."""

    def __post_init__(self) -> None:
        at_least(
            self, 1, "max_train_steps", "max_train_epochs", "gradient_accumulation_steps", "initial_epoch"
        )
        at_least(self, 0, "initial_step")
