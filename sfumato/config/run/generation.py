"""What image is asked for, and how it is made."""

from dataclasses import dataclass, field

from sfumato.config.checks import at_least
from sfumato.config.rule import excludes, given, idle
from sfumato.errors import UserError


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

    embeddings: tuple[str, ...] = ()
    """Files of new words (textual inversion); prompts then know the word that each file is named after."""

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

    for_regularisation: tuple[str, ...] = field(default=(), metadata={"count": "+"})
    """Make the regularisation images that a data set lacks, with seeds that count up from `seed` (or 0). Name
    its file, or its two folders as training has them: `train_data_dir`, then `reg_data_dir`; width and height
    are their size where the file gives no resolution."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "width", "height")
        named = self.for_regularisation
        if len(named) > 2 or (len(named) == 1 and not named[0].lower().endswith((".toml", ".json"))):
            raise UserError(
                f"--for_regularisation is {' '.join(named)}; name a data set file (.toml or .json), or two "
                "folders: of the images to train on, and of regularisation images"
            )


RULES = (
    excludes(["for_regularisation"], ["interactive"], "the data set says what is made"),
    idle(["prompt", "output_dir"], among=(given("for_regularisation"),)),
)
"""What these options mean to others."""
