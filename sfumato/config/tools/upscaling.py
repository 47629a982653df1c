"""Options of the latent upscaler."""

from dataclasses import dataclass

from sfumato.config.checks import at_least, present


@dataclass(frozen=True)
class UpscalingConfig:
    """Images of twice the size."""

    vae_path: str | None = None
    """Autoencoder of Stable Diffusion 1 or 2: a file, or a diffusers folder. Required."""

    weights: str | None = None
    """File of the latent upscaler. Required."""

    image_pattern: str | None = None
    """Images, as a file name with wildcards: 'images/*.png'. Required."""

    output_dir: str = "."
    """Folder to write to; made if it is not there."""

    batch_size: int = 4
    """Images of equal size that are sharpened together."""

    vae_batch_size: int = 1
    """Images of equal size that are encoded together."""

    debug: bool = False
    """Say more in sd-scripts."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "vae_batch_size")
        remedy = "give --vae_path FILE --weights FILE --image_pattern 'FOLDER/*.png'"
        present(self, remedy, "vae_path", "weights", "image_pattern")
