"""How a whole checkpoint is rewritten."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.rule import excludes

_POSITIONAL = {"required": True}


@dataclass(frozen=True)
class ConversionConfig:
    """The conversion."""

    model_to_load: str = field(default="", metadata={"flags": ("model_to_load",), **_POSITIONAL})
    """Model to read: a single file, a folder in diffusers' layout, or a name on the Hub."""

    model_to_save: str = field(default="", metadata={"flags": ("model_to_save",), **_POSITIONAL})
    """What to write: a file (.safetensors, .ckpt) or, without a suffix, a folder in diffusers' layout."""

    v1: bool = False
    """Insist that the model is Stable Diffusion 1; files tell, so this is not needed."""

    v2: bool = False
    """Insist that the model is Stable Diffusion 2; files tell, so this is not needed."""

    unet_use_linear_projection: bool = False
    """Write the layers around transformers as Linear; they are always written as the model has them."""

    fp16: bool = False
    """Write float16; every tensor keeps its own format when none is asked for."""

    bf16: bool = False
    """Write bfloat16."""

    float: bool = False
    """Write float32."""

    save_precision_as: Literal["no", "fp16", "bf16", "float"] = field(
        default="no", metadata={"choices": ("fp16", "bf16", "float")}
    )
    """Dtype to write; counts before the three switches."""

    epoch: int = 0
    """Epoch to record in a .ckpt file, on top of the one that the model has."""

    global_step: int = 0
    """Step to record in a .ckpt file, on top of the one that the model has."""

    metadata: str | None = None
    """Strings to store in a .safetensors file, as a JSON object: '{"modelspec.title": "mine"}'."""

    variant: str | None = None
    """Read the files of a folder that have this word before their suffix, `fp16` for example."""

    reference_model: str | None = None
    """Folder in diffusers' layout (or its name on the Hub) whose scheduler and tokenizers to copy."""

    use_safetensors: bool = False
    """Write the weights of a folder as safetensors instead of pickled."""

    @property
    def format(self) -> str | None:
        """The dtype that is asked for; None where each tensor keeps its own."""
        switches = {"fp16": self.fp16, "bf16": self.bf16, "float": self.float}
        named = None if self.save_precision_as == "no" else self.save_precision_as
        return named or next((name for name, is_on in switches.items() if is_on), None)


RULES = (excludes(["v1"], ["v2"], "a model is one of the two, and its files tell which"),)
"""What these options mean to each other."""
