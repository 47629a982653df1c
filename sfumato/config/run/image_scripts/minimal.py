"""Options of the short scripts that show how images are made."""

from dataclasses import dataclass, field

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class MinimalConfig:
    """The image."""

    ckpt_path: str | None = field(default=None, metadata={"required": True})
    """The model: a file, a folder in diffusers' layout, or a name on the Hub."""

    image: str | None = field(default=None, metadata={"required": True})
    """Image of which a part is repainted."""

    mask: str | None = None
    """Image of which white is repainted; when not given, a mask is drawn of the seed."""

    prompt: str = ""
    """What the image should show."""

    negative_prompt: str = ""
    """What the image should not show."""

    width: int = 1024
    """Width of the image in pixels."""

    height: int = 1024
    """Height of the image in pixels."""

    steps: int = 50
    """Steps of the sampler."""

    guidance_scale: float = 7.0
    """Strength of classifier-free guidance."""

    seed: int | None = None
    """Seed of the noise; a random one, shown and recorded, when not given."""

    output_dir: str = "."
    """Folder for the images."""

    lora_weights: tuple[str, ...] = ()
    """Adapter files, each with an optional strength: `file;0.8`."""

    interactive: bool = False
    """Ask for one prompt after the other until an empty line."""

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "height", "steps")
        at_least(self, 0, "seed")


@dataclass(frozen=True)
class AdapterViewConfig:
    """The images."""

    model_id: str | None = None
    """The model: a file, a folder in diffusers' layout, or a name on the Hub."""

    lora_weights: str | None = None
    """Adapter file."""

    prompt: str = "A photo of cat"
    """What the images should show."""

    negative_prompt: str = ""
    """What the images should not show."""

    seed: int = 0
    """Seed of the noise of all images."""
