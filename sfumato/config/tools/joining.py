"""How the parts of a model become one file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JoiningConfig:
    """The file."""

    output: str = "merged_model.safetensors"
    """File to write."""

    device: str = "cpu"
    """Where tensors are read to; each goes from file to file."""

    save_precision: str | None = None
    """Dtype of the file, `fp16` for example; each tensor's own when not given."""
