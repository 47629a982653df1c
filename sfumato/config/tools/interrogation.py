"""Which LoRA is asked for the tokens that it changes, and of which model."""

from dataclasses import dataclass

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class InterrogationConfig:
    """The question."""

    v2: bool = False
    """Insist that the model is Stable Diffusion 2; files tell, so this is not needed."""

    sd_model: str | None = None
    """Base model: a single file, or a folder in diffusers' layout."""

    model: str | None = None
    """LoRA file, trained with the text encoder."""

    batch_size: int = 16
    """Prompts of one token each that are encoded at once."""

    clip_skip: int | None = None
    """Take the text encoder's output this many layers before its end, from 1, as in training."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "clip_skip")
