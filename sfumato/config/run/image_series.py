"""How many images are made, of which prompts, and how many at once."""

from dataclasses import dataclass

from sfumato.config.checks import at_least
from sfumato.config.rule import excludes


@dataclass(frozen=True)
class ImageSeriesConfig:
    """Many images."""

    from_file: str | None = None
    """File of prompts, .txt, .toml or .json: each line or entry may say more than its prompt, as with
    `interactive`."""

    num_images: int = 1
    """Images of each prompt, with seeds that count up."""

    batch_size: int = 1
    """Images made at once: more are quicker, and take more VRAM."""

    vae_batch_size: int = 1
    """Images that are encoded or decoded at once."""

    vae_tiling: bool = False
    """Encode and decode large images in tiles, with less VRAM; differs a little from the whole."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_images", "batch_size", "vae_batch_size")


RULES = (
    excludes(["from_file"], ["interactive", "for_regularisation"], "each says what is made"),
    excludes(["num_images", "batch_size"], ["for_regularisation"], "the data set says how many are made"),
)
"""What these options mean to others."""
