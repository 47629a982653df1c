"""What gen_img makes one image with, in full; a prompt line changes any of it (`image_options`)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby


@dataclass(frozen=True)
class DeepShrink:
    """Shrink features inside the UNet while the image's composition forms.

    Attributes:
        depth_1, depth_2: blocks before which features are shrunk; `depth_2` None is never.
        timesteps_1, timesteps_2: down to which that goes on, in [0, 1000).
        ratio: of the sides.
    """

    depth_1: int = 3
    timesteps_1: int = 650
    depth_2: int | None = None
    timesteps_2: int = 650
    ratio: float = 0.5


@dataclass(frozen=True)
class UnsharpMask:
    """Sharpen what was enlarged.

    Attributes:
        kernel: width of the blur in latent pixels, odd.
        sigma: of the blur.
        strength: of what is added.
        after_step: sharpen the result of a sampler's step instead of what goes into it.
    """

    kernel: int
    sigma: float
    strength: float
    after_step: bool = True


@dataclass(frozen=True)
class GradualLatent:
    """Begin with small latents, and enlarge them while the image forms.

    Attributes:
        timesteps: from which latents grow, in [0, 1000).
        ratio: of the sides at the start.
        every_n_steps: steps from one size to the next.
        ratio_step: what is added to the ratio.
        s_noise: strength of the sampler's noise when the size changes.
        unsharp: None leaves enlarged latents as they are.
    """

    timesteps: int = 650
    ratio: float = 0.5
    every_n_steps: int = 3
    ratio_step: float = 0.125
    s_noise: float = 1.0
    unsharp: UnsharpMask | None = None


@dataclass(frozen=True)
class ImageSettings:
    """What one image is made with, but for its seed.

    Attributes:
        prompt: with ` AND ` between the parts for several regions.
        width, height: in pixels.
        original_width, original_height, crop_left, crop_top: what SDXL is told; None follows from the size.
        original_width_negative, original_height_negative: the same for the negative prompt.
        scale: classifier-free guidance scale; off up to 1.
        negative_scale: guidance away from the negative prompt by itself; None is off.
        strength: share of the steps that changes a given image, in [0, 1].
        clip_prompt: text of CLIP guidance.
        multipliers: strengths of the adapters, in their order.
    """

    prompt: str = ""
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    original_width: int | None = None
    original_height: int | None = None
    original_width_negative: int | None = None
    original_height_negative: int | None = None
    crop_top: int | None = None
    crop_left: int | None = None
    steps: int = 50
    scale: float = 7.5
    negative_scale: float | None = None
    strength: float = 0.8
    clip_prompt: str | None = None
    multipliers: tuple[float, ...] = ()
    deep_shrink: DeepShrink | None = None
    gradual_latent: GradualLatent | None = None

    @property
    def batch_key(self) -> Hashable:
        """What images that are made at once must have in common."""
        alike = replace(self, prompt="", negative_prompt="", clip_prompt=None)
        return alike, len(sub_prompts(self.prompt))


def sub_prompts(prompt: str) -> list[str]:
    """Return the parts of a prompt between which ` AND ` stands: one for each region of the image."""
    return prompt.split(" AND ")


def batches_in_order(images: Sequence[ImageSettings], largest: int) -> list[list[int]]:
    """Return the places of images that are made at once: neighbours that are alike, at most `largest`."""
    runs = (list(run) for _, run in groupby(range(len(images)), lambda place: images[place].batch_key))
    return [run[start : start + largest] for run in runs for start in range(0, len(run), largest)]
