"""When the loss is measured on images that are not trained."""

from dataclasses import dataclass

from sfumato.config.checks import at_least
from sfumato.config.rule import idle
from sfumato.config.run.data.dataset import HELD_BACK


@dataclass(frozen=True)
class ValidationConfig:
    """Validation."""

    validate_every_n_steps: int | None = None
    """Measure after every n-th step."""

    validate_every_n_epochs: int | None = None
    """Measure after every n-th epoch; after each when neither is given."""

    max_validation_steps: int | None = None
    """Batches that one measurement takes at most; all when not given."""

    def __post_init__(self) -> None:
        at_least(self, 0, "validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps")


RULES = (idle(["validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps"], *HELD_BACK),)
"""What these options mean to others."""
