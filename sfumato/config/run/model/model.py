"""Which base model is trained, and how its files are read."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least
from sfumato.config.rule import given, needs


@dataclass(frozen=True)
class ModelConfig:
    """The base model."""

    v2: bool = False
    """The base is Stable Diffusion 2.x. Other families do not listen to it."""

    v_parameterization: bool = False
    """The base predicts velocity instead of noise, as the 768-pixel Stable Diffusion 2.x does; not needed
    where its files say so."""

    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    """Insist that the base predicts noise (epsilon) or velocity (v_prediction), whatever its files say."""

    pretrained_model_name_or_path: str | None = None
    """Base model: a single file, a folder in diffusers' layout, or a name on the Hugging Face Hub:
    `user/name`, with `@revision` or `/file` behind it if need be."""

    tokenizer_cache_dir: str | None = None
    """Folder in which tokenizers are kept, so that later runs need no network."""

    vae: str | None = None
    """Autoencoder that replaces the one inside the base model: a file, a folder, or a name on the Hub."""

    no_half_vae: bool = False
    """Run the autoencoder in float32 under mixed precision too; for autoencoders that overflow in fp16."""

    clip_skip: int | None = None
    """Take the text encoder's output this many layers before its end, from 1; for bases trained that way."""

    disable_mmap_load_safetensors: bool = False
    """Read model files without mapping them into memory; quicker on network drives and under WSL."""

    def __post_init__(self) -> None:
        at_least(self, 1, "clip_skip")


RULES = (
    needs(
        ["v_parameterization"],
        reason="--prediction_type v_prediction, or none",
        among=(given("prediction_type", "epsilon"),),
    ),
)
"""What these options mean to others."""
