"""The model that images are made with, in the scripts of sd-scripts that take any Stable Diffusion."""

from dataclasses import dataclass

from sfumato.errors import UserError


@dataclass(frozen=True)
class CheckpointOptions:
    """The model."""

    sdxl: bool = False
    """Insist that the model is SDXL; files tell, so this is not needed."""

    v1: bool = False
    """Insist that the model is Stable Diffusion 1; files tell, so this is not needed."""

    v2: bool = False
    """Insist that the model is Stable Diffusion 2; files tell, so this is not needed."""

    v_parameterization: bool = False
    """The model predicts velocity; not needed where its files say so."""

    ckpt: str | None = None
    """The model: a file, a folder in diffusers' layout, a name on the Hub, or a pattern such as
    `models/x*.safetensors` that one file fits."""

    vae: str | None = None
    """Autoencoder that replaces the one inside the model: a file, a folder, or a name on the Hub."""

    tokenizer_cache_dir: str | None = None
    """Folder in which tokenizers are kept, so that later runs need no network."""

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("sdxl", "v1", "v2") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(f"{' excludes '.join(given)}: a model is one of them")
