"""Which checkpoints are merged, and how."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.errors import UserError

_SOME = {"count": "+"}


@dataclass(frozen=True)
class MergingConfig:
    """The merge."""

    models: tuple[str, ...] | None = field(default=None, metadata=_SOME)
    """Checkpoints to merge, .safetensors; the first one decides which tensors there are."""

    output: str | None = None
    """File to write; `.safetensors` is added where it lacks."""

    ratios: tuple[float, ...] | None = field(default=None, metadata=_SOME)
    """How much each checkpoint counts, as given (they need not add up to 1); equal shares when not given."""

    unet_only: bool = False
    """Merge the UNets alone; autoencoder and text encoders are those of the first checkpoint."""

    device: str = "cpu"
    """Where to compute: `cpu`, `cuda` ..."""

    precision: Literal["float", "fp16", "bf16"] = "float"
    """Dtype of the computation."""

    saving_precision: Literal["float", "fp16", "bf16"] = "float"
    """Dtype of the file."""

    show_skipped: bool = False
    """List the tensors that only some of the checkpoints have."""

    def __post_init__(self) -> None:
        if self.models and self.ratios and len(self.models) != len(self.ratios):
            counts = f"{len(self.ratios)} numbers for {len(self.models)} models"
            raise UserError(f"--ratios has {counts}; give one for each model, or none")
