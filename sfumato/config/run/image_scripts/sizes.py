"""How large images are, and what the model is told about it."""

from dataclasses import dataclass

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class SizeConfig:
    """Sizes in pixels."""

    H: int | None = None
    """Height of the images; what suits the model when not given."""

    W: int | None = None
    """Width of the images; what suits the model when not given."""

    original_height: int | None = None
    """Height that the model is told the image had before it was cut."""

    original_width: int | None = None
    """Width that the model is told the image had before it was cut."""

    original_height_negative: int | None = None
    """The same height for the negative prompt; that of the prompt when not given."""

    original_width_negative: int | None = None
    """The same width for the negative prompt; that of the prompt when not given."""

    crop_top: int | None = None
    """How much the model is told was cut off above."""

    crop_left: int | None = None
    """How much the model is told was cut off on the left."""

    def __post_init__(self) -> None:
        at_least(self, 1, "H", "W")
