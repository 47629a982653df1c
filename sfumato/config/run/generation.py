"""What image is asked for, and how it is made."""

from dataclasses import dataclass

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class GenerationConfig:
    """The image."""

    prompt: str = "A photo of a cat"
    """What the image should show."""

    output_dir: str = "."
    """Folder for the images."""

    dtype: str = "bfloat16"
    """Dtype of the computation and of every part that has none of its own."""

    seed: int | None = None
    """Seed of the noise that the image starts from; a random one, shown and recorded, when not given."""

    steps: int | None = None
    """Number of denoising steps; what suits the model when not given."""

    guidance: float = 3.5
    """Guidance given to a guidance-distilled model."""

    negative_prompt: str | None = None
    """What the image should not show. Takes effect with a `cfg_scale` other than 1."""

    cfg_scale: float = 1.0
    """Strength of classifier-free guidance; 1 is off, more computes every step twice."""

    offload: bool = False
    """Keep on the device only the part that is at work."""

    lora_weights: tuple[str, ...] = ()
    """Adapter files, each with an optional strength: `file;0.8`."""

    merge_lora_weights: bool = False
    """Merge the adapters into the model instead of computing them beside it: quicker steps."""

    width: int = 1360
    """Width of the image in pixels."""

    height: int = 768
    """Height of the image in pixels."""

    sampler: str | None = None
    """Name of the sampler, `ddim` or `euler_a` for example; what suits the model when not given."""

    image: str | None = None
    """Image that an inpainting model repaints a part of; cut to `width` and `height`."""

    mask: str | None = None
    """Image of which white is repainted, beside `image`; when not given, a mask is drawn of the seed."""

    interactive: bool = False
    """Ask for one prompt after the other until an empty line."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "width", "height")
