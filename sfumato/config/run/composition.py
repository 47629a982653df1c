"""What an image is put together of: its start, its steps, its guidance, its second stage."""

from dataclasses import dataclass

from sfumato.config.checks import above, at_least, between
from sfumato.config.rule import Values, excludes, given, needs


@dataclass(frozen=True)
class CompositionConfig:
    """How the image is made."""

    strength: float | None = None
    """Share of the steps that changes `image`, from 0 to 1: 0.8 when not given, and all of them for an
    inpainting model."""

    schedule: str | None = None
    """Noise levels that the sampler visits: `normal`, `karras`, `exponential`, `simple` or `beta`; the
    sampler's own when not given."""

    negative_scale: float | None = None
    """Lead away from the negative prompt by this scale, and towards the prompt by `cfg_scale`; three
    predictions a step instead of two."""

    cfg_rescale: float | None = None
    """Share, from 0 to 1, in which guidance is brought back to the contrast that it had without."""

    hires_scale: float | None = None
    """Make the image with sides of this share first, enlarge it and make it anew from there."""

    hires_steps: int | None = None
    """Steps of the first stage; as many as `steps` when not given."""

    hires_strength: float | None = None
    """Share of the steps that changes the enlarged image; 0.8 when not given."""

    hires_upscaler: str = "lanczos"
    """What enlarges: `lanczos` the image; `latent` or `latent-bicubic` its latents."""

    deep_shrink_depth: int | None = None
    """Shrink features before this block of the UNet while the composition forms;
    for sizes above the model's."""

    deep_shrink_timestep: int = 650
    """Timestep down to which features are shrunk."""

    deep_shrink_ratio: float = 0.5
    """Share of the sides that shrunk features have."""

    gradual_latent_timestep: int | None = None
    """Begin with small latents, which grow from this timestep on; for the sampler `euler_a`."""

    gradual_latent_ratio: float = 0.5
    """Share of the sides that latents have at the start."""

    regions: str | None = None
    """Image whose red, green and blue say where the first three parts of the prompt hold, between which there
    is ` AND `; the first adapter acts in the first region, and so on. For Stable Diffusion 1, 2 and XL."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "strength", "cfg_rescale", "hires_strength")
        above(self, 0, "hires_scale", "deep_shrink_ratio", "gradual_latent_ratio")
        at_least(self, 1, "hires_steps")
        at_least(self, 0, "deep_shrink_depth", "deep_shrink_timestep", "gradual_latent_timestep")


def _is_guided(values: Values) -> bool:
    return values["cfg_scale"] != 1


def _may_be_guided(values: Values) -> bool:
    return _is_guided(values) or bool(values.get("interactive") or values.get("from_file"))


RULES = (
    needs(
        ["strength"],
        *(given("image"), given("interactive"), given("from_file")),
        reason="--image, which it changes",
    ),
    needs(
        ["negative_scale", "cfg_rescale"],
        reason="a --cfg_scale other than 1, or there is no guidance",
        unless=_may_be_guided,
    ),
    needs(["hires_steps", "hires_strength", "hires_upscaler"], given("hires_scale")),
    needs(["deep_shrink_timestep", "deep_shrink_ratio"], given("deep_shrink_depth")),
    needs(["gradual_latent_ratio"], given("gradual_latent_timestep")),
    excludes(["hires_scale"], ["mask"], "its second stage would repaint what the mask keeps"),
    excludes(["gradual_latent_timestep"], ["mask"], "what the mask keeps does not grow"),
)
"""What these options mean to each other."""
