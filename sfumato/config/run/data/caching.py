"""What is computed once and kept instead of being computed at every step."""

from dataclasses import dataclass

from sfumato.config.checks import at_least
from sfumato.config.rule import excludes, implies


@dataclass(frozen=True)
class CachingConfig:
    """Caches of latents and of text encoder outputs."""

    cache_latents: bool = False
    """Encode every image once, then free the autoencoder. Excludes `color_aug`, `random_crop` and
    `face_crop_aug_range`."""

    cache_latents_to_disk: bool = False
    """Keep the cached latents beside the images for later runs; implies `cache_latents`."""

    vae_batch_size: int = 1
    """Images encoded together while latents are cached."""

    skip_cache_check: bool = False
    """Trust caches on disk without opening them. Quicker for large data; a stale cache goes unnoticed."""

    cache_text_encoder_outputs: bool = False
    """Encode every caption once, then free the text encoders. Excludes captions that vary."""

    cache_text_encoder_outputs_to_disk: bool = False
    """Keep the encoded captions beside the images for later runs; implies `cache_text_encoder_outputs`."""

    text_encoder_batch_size: int | None = None
    """Captions encoded together while they are cached; `train_batch_size` when not given."""

    def __post_init__(self) -> None:
        at_least(self, 1, "vae_batch_size", "text_encoder_batch_size")


_VARYING = ("color_aug", "random_crop", "face_crop_aug_range")

RULES = (
    excludes(["cache_latents", "cache_latents_to_disk"], _VARYING, "cached images cannot vary"),
    implies("cache_latents_to_disk", {"cache_latents": True}),
    implies("cache_text_encoder_outputs_to_disk", {"cache_text_encoder_outputs": True}),
)
"""What these options mean to others."""
