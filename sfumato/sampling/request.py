"""What one image is asked to be, in full: the same request makes the same image again."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from sfumato.errors import UserError
from sfumato.sampling.settings.deep_shrink import DeepShrink
from sfumato.sampling.settings.gradual_latent import GradualLatent
from sfumato.sampling.settings.hires import Hires
from sfumato.sampling.settings.regions import Regions
from sfumato.sampling.settings.sizes import SizeConditions


@dataclass(frozen=True)
class Request:
    """One image to be made; nothing is left to defaults that may change.

    Attributes:
        prompt: what to show; with ` AND ` between the parts, if there are `regions`.
        negative_prompt: what to steer away from; it is read only where `cfg_scale` is not 1.
        width, height: size in pixels.
        steps: how many times the sampler asks the denoiser (twice as often for second-order samplers).
        seed: of the starting noise, which is the same on every device.
        guidance: distilled guidance scale, for the models that have one.
        cfg_scale: classifier-free guidance scale; 1 turns it off.
        negative_scale: how far to go away from the negative prompt by itself; None has `cfg_scale` do both.
        cfg_rescale: share in which guidance is brought back to the contrast of its prompt, in [0, 1].
        sampler: a name in `sampler_names` for the kind of model that is sampled.
        schedule: a name in `sampler_names.SCHEDULES`; None is the sampler's own.
        image: file of an image to start from, of which an inpainting model repaints a part; None is noise.
        mask: file of which white is repainted, beside `image`; None changes everything, and for an inpainting
            model draws a mask of the seed.
        strength: share of the steps that changes `image`, in [0, 1]; None is `STRENGTH`, and all for an
            inpainting model.
        sizes: what the model is told of the framing, for the models that are told.
        clip_prompt: text of CLIP guidance.
        multipliers: strengths of the adapters, in their order; None is as they were loaded.
        deep_shrink, gradual_latent, hires, regions: settings of these; None is without.
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
    strength: float | None = None
    negative_scale: float | None = None
    cfg_rescale: float | None = None
    schedule: str | None = None
    sizes: SizeConditions | None = None
    clip_prompt: str | None = None
    multipliers: tuple[float, ...] | None = None
    deep_shrink: DeepShrink | None = None
    gradual_latent: GradualLatent | None = None
    hires: Hires | None = None
    regions: Regions | None = None

    def __post_init__(self) -> None:
        for name in ("width", "height", "steps"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name} is {value}; use 1 or more")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; use a whole number from 0 to {2**63 - 1}")
        if self.mask is not None and self.image is None:
            raise UserError(f"mask is {self.mask}, and no image is given; name the image that it belongs to")
        for name, share in (("strength", self.strength), ("cfg_rescale", self.cfg_rescale)):
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"{name} is {share}; use a number from 0 to 1")

    @property
    def is_guided_by_negative(self) -> bool:
        """Whether the denoiser is asked for the negative prompt too."""
        return self.cfg_scale != 1.0

    @property
    def sub_prompts(self) -> list[str]:
        """What each region of the image shows; the prompt alone if there are none."""
        return sub_prompts(self.prompt) if self.regions else [self.prompt]

    def passes(self) -> tuple[str, ...]:
        """Return the texts that the denoiser is asked with in each step: prompt, negative prompt, no prompt.

        Of several sub-prompts it is the last; what acts by regions brings the others in.
        """
        texts = (self.sub_prompts[-1], self.negative_prompt, "")
        if not self.is_guided_by_negative:
            return texts[:1]
        return texts if self.negative_scale is not None else texts[:2]

    def prompts(self) -> tuple[str, ...]:
        """Return the texts that must be encoded for this image."""
        return (*self.sub_prompts[:-1], *self.passes())

    @property
    def batch_key(self) -> Hashable:
        """What images that are made at once must have in common."""
        return (
            *(self.width, self.height, self.steps, self.sampler, self.schedule),
            *(len(self.sub_prompts), len(self.passes()), self.image is None, self.mask is None),
            *(self.strength, self.multipliers),
            *(self.deep_shrink, self.gradual_latent, self.hires, self.regions),
        )

    @property
    def settings(self) -> Hashable:
        """All that gen_img does not let differ within a batch."""
        bare = replace(self, prompt="", negative_prompt="", clip_prompt=None, seed=0, image=None, mask=None)
        return bare, len(sub_prompts(self.prompt))


STRENGTH = 0.8
"""Of a start image, where a request says nothing."""


def sub_prompts(prompt: str) -> list[str]:
    """Return the parts of a prompt between which ` AND ` stands: one for each region of the image."""
    return prompt.split(" AND ")


def batches(requests: Sequence[Request], largest: int) -> list[list[int]]:
    """Return the places of requests that are made at once, at most `largest`, in the order of the first."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        alike[request.batch_key].append(place)
    return [places[i : i + largest] for places in alike.values() for i in range(0, len(places), largest)]


def random_seed() -> int:
    """Return a seed that nobody chose: 32 bits, so that every tool can type it back."""
    return secrets.randbits(32)
