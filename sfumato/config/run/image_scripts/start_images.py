"""Images that new ones are made of, and what of them is repainted."""

from dataclasses import dataclass

from sfumato.config.checks import between
from sfumato.config.rule import given, idle, needs


@dataclass(frozen=True)
class StartImageConfig:
    """Images to start from."""

    image_path: str | None = None
    """Image to start from, or a folder of them that is gone through again and again."""

    mask_path: str | None = None
    """Image, or folder, of which white is repainted and black is kept; with networks, their regions."""

    strength: float | None = None
    """How much of a given image is changed, from 0 to 1; 0.8 when not given."""

    guide_image_path: tuple[str, ...] | None = None
    """Images, or folders, that guide what is made."""

    clip_vision_strength: float | None = None
    """Let the given image's own embedding, this strong, take the place of the prompt's summary."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "strength")


RULES = (
    needs(["clip_vision_strength"], given("image_path")),
    idle(["strength"], given("image_path"), given("highres_fix_scale")),
)
"""What these options mean to others."""
