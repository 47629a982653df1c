"""How much is computed at once, and in which precision."""

from dataclasses import dataclass

from sfumato.config.checks import above, at_least
from sfumato.config.rule import excludes


@dataclass(frozen=True)
class SpeedConfig:
    """Batches and precision."""

    batch_size: int = 1
    """Images that are made at once, as long as their settings are alike."""

    vae_batch_size: float | None = None
    """Images that are decoded at once: a number or, below 1, a share of the batch; one by one when not
    given."""

    vae_slices: int | None = None
    """With 2 or more, decode large images in tiles that overlap, which takes less memory; their size is that
    of the autoencoder's training, whatever the number."""

    no_half_vae: bool = False
    """Run the autoencoder in float32; for autoencoders that overflow in fp16."""

    fp16: bool = False
    """Compute in fp16; in float32 when neither this nor bf16 is given."""

    bf16: bool = False
    """Compute in bf16; in float32 when neither this nor fp16 is given."""

    xformers: bool = False
    """Read, and needed for nothing: attention always runs in PyTorch's own kernels."""

    sdpa: bool = False
    """Compute attention with PyTorch's scaled_dot_product_attention, as is done anyway."""

    diffusers_xformers: bool = False
    """Read, and needed for nothing: attention always runs in PyTorch's own kernels."""

    opt_channels_last: bool = False
    """Keep weights in the channels-last layout, which suits some cards."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "vae_slices")
        above(self, 0, "vae_batch_size")


RULES = (excludes(["fp16"], ["bf16"], "one precision is computed in"),)
"""What these options mean to others."""
