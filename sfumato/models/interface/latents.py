"""Latents: their geometry, and how files that keep them look."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LatentSpace:
    """The geometry of a family's latents: `scaled = (raw - shift) * scale`."""

    channels: int
    downscale: int
    scale: float
    shift: float = 0.0
    patch: int = 1
    """Latent pixels per token side; image sides must be multiples of `downscale * patch`."""

    def scaled(self, raw: Tensor) -> Tensor:
        """Return the VAE's latents as the denoiser sees them."""
        return (raw - self.shift) * self.scale

    def raw(self, scaled: Tensor) -> Tensor:
        """Return the denoiser's latents as the VAE makes them."""
        return scaled / self.scale + self.shift


@dataclass(frozen=True)
class JoinedOutputs:
    """Outputs of two text encoders that lie side by side in cache files, joined along their last dimension.

    Attributes:
        name: in files.
        outputs: of the two, in order.
        width: of the first; the second has the rest.
    """

    name: str
    outputs: tuple[str, str]
    width: int


@dataclass(frozen=True)
class CacheFormat:
    """How a family's cache files are called and what latent files hold, as sd-scripts has it.

    Attributes:
        latents: what the names of latent files end in, behind the image's name and size.
        texts: what the names of text files end in, behind the image's name.
        is_scaled: latents are stored as the denoiser sees them; otherwise as the VAE makes them.
        is_sized: names within a latent file carry the latents' size, so that one file can hold several.
        older: what the names of latent files ended in before, behind the image's name; "" where there was
            no other name.
        adopts_texts: text files that do not say what they were made of, as sd-scripts writes them, hold what
            the text encoders say here.
        joined: outputs that text files hold as one, where both are kept.
    """

    latents: str
    texts: str
    is_scaled: bool = True
    is_sized: bool = True
    older: str = ""
    adopts_texts: bool = True
    joined: tuple[JoinedOutputs, ...] = ()

    @property
    def has_latents_alone(self) -> bool:
        """Whether latents may be all that is left of an image: sd-scripts has files of such models only."""
        return bool(self.older)
