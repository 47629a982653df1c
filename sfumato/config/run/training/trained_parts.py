"""Which parts of a whole model are trained, and at which rates."""

import math
from dataclasses import dataclass

from sfumato.config.checks import at_least
from sfumato.config.rule import given, idle
from sfumato.errors import UserError


@dataclass(frozen=True)
class TrainedPartsConfig:
    """Trained parts."""

    train_text_encoder: bool = False
    """Train the text encoders along with the denoiser: more memory, and new words are learned better."""

    learning_rate_te: float | None = None
    """Learning rate of the text encoder; `learning_rate` when not given, and 0 leaves it as it is."""

    learning_rate_te1: float | None = None
    """Learning rate of the first text encoder; `learning_rate` when not given, and 0 leaves it as it is."""

    learning_rate_te2: float | None = None
    """Learning rate of the second text encoder, likewise."""

    learning_rate_te3: float | None = None
    """Learning rate of the third text encoder, likewise."""

    stop_text_encoder_training: int | None = None
    """Leave the text encoders as they are after this many steps; 0 or -1 does not train them at all."""

    block_lr: str | None = None
    """Learning rates of the denoiser's blocks, 23 for SDXL: the embeddings, 9 on the way down, 3 in the
    middle, 9 on the way up, the output. `1e-5,1e-5,0, ...`; 0 leaves a block as it is."""

    num_last_block_to_freeze: int | None = None
    """Leave so many blocks at the end of the denoiser as they are."""

    def __post_init__(self) -> None:
        at_least(self, -1, "stop_text_encoder_training")
        at_least(self, 0, "num_last_block_to_freeze")
        _ = self.block_rates

    @property
    def encoder_rates(self) -> tuple[float | None, ...]:
        """The rates that were given for the text encoders, in order; None where none was."""
        first = self.learning_rate_te1 if self.learning_rate_te is None else self.learning_rate_te
        return first, self.learning_rate_te2, self.learning_rate_te3

    @property
    def block_rates(self) -> tuple[float, ...]:
        """The denoiser's rates, block by block; none where it has one rate."""
        texts = self.block_lr.split(",") if self.block_lr else ()
        try:
            rates = tuple(map(float, texts))
        except ValueError:
            rates = (math.nan,)
        if not all(map(math.isfinite, rates)):
            raise UserError(f"--block_lr is {self.block_lr}; give numbers with commas between them")
        return rates


_RATES = ("learning_rate_te", "learning_rate_te1", "learning_rate_te2", "learning_rate_te3")
NEEDS_TRAINED_ENCODERS = idle([*_RATES, "stop_text_encoder_training"], given("train_text_encoder"))
"""The rule of scripts that train text encoders only where they are asked to."""
