"""What one image is asked to be, in full: the same request makes the same image again."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from sfumato.errors import UserError


@dataclass(frozen=True)
class Request:
    """One image to be made; nothing is left to defaults that may change.

    Attributes:
        prompt: what to show.
        negative_prompt: what to steer away from; it is read only where `cfg_scale` is not 1.
        width, height: size in pixels.
        steps: how many times the sampler asks the denoiser (twice as often for second-order samplers).
        seed: of the starting noise, which is the same on every device.
        guidance: distilled guidance scale, for the models that have one.
        cfg_scale: classifier-free guidance scale; 1 turns it off.
        sampler: a name in `sampling.methods` for the kind of model that is sampled.
        image: file of an image that an inpainting model repaints a part of; None has it paint everything.
        mask: file of which white is repainted, beside `image`; None draws a mask of the seed.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 1024
    height: int = 1024
    steps: int = 20
    seed: int = 0
    guidance: float = 3.5
    cfg_scale: float = 1.0
    sampler: str = "euler"
    image: str | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        for name in ("width", "height", "steps"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name} is {value}; use 1 or more")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; use a whole number from 0 to {2**63 - 1}")
        if self.mask is not None and self.image is None:
            raise UserError(f"mask is {self.mask}, and no image is given; name the image that it belongs to")

    @property
    def is_guided_by_negative(self) -> bool:
        """Whether the denoiser is asked for the negative prompt too."""
        return self.cfg_scale != 1.0

    def prompts(self) -> tuple[str, ...]:
        """Return the texts that must be encoded for this image."""
        return (self.prompt, self.negative_prompt) if self.is_guided_by_negative else (self.prompt,)

    @property
    def batch_key(self) -> Hashable:
        """What images that are made at once must have in common."""
        return (self.width, self.height, self.steps, self.sampler, self.is_guided_by_negative)


def batches(requests: Sequence[Request], largest: int) -> list[list[int]]:
    """Return the places of requests that are made at once, at most `largest`, in the order of the first."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        alike[request.batch_key].append(place)
    return [places[i : i + largest] for places in alike.values() for i in range(0, len(places), largest)]


def random_seed() -> int:
    """Return a seed that nobody chose: 32 bits, so that every tool can type it back."""
    return secrets.randbits(32)
