"""Which DyLoRA is cut into LoRAs, and where they go."""

from dataclasses import dataclass

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class SplittingConfig:
    """The cut."""

    unit: int | None = None
    """Ranks by which one LoRA is larger than the one before: what `unit` was in training."""

    save_to: str | None = None
    """Files to write: `x.safetensors` becomes `x-0004.safetensors` for rank 4, and so on."""

    model: str | None = None
    """DyLoRA file, as networks.dylora trains it."""

    def __post_init__(self) -> None:
        at_least(self, 1, "unit")
