"""How the difference of two models becomes a LoRA."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.errors import UserError

_REQUIRED = {"required": True}


@dataclass(frozen=True)
class ExtractionConfig:
    """The extraction."""

    model_org: str = field(default="", metadata=_REQUIRED)
    """Model that the other one was made from: a file, or a folder in diffusers' layout."""

    model_tuned: str = field(default="", metadata=_REQUIRED)
    """Model whose difference to the first becomes the LoRA."""

    save_to: str = field(default="", metadata=_REQUIRED)
    """File to write: .safetensors, or .pt or .ckpt for a pickled one without metadata."""

    dim: int = 4
    """Rank of the LoRA; at most a layer's smaller side."""

    conv_dim: int | None = None
    """Rank of kernels wider than 1x1; they are left out when not given."""

    clamp_quantile: float = 0.99
    """Limit the LoRA's values at this quantile, above 0.5; 1 limits nothing and is the closest."""

    min_diff: float = 0.01
    """Leave the text encoders out if none of their weights differs by more than this."""

    load_precision: Literal[None, "float", "fp16", "bf16"] = None
    """Dtype to round both models' weights to before they are compared; their own when not given."""

    save_precision: Literal[None, "float", "fp16", "bf16"] = None
    """Dtype to write; float when not given."""

    device: str | None = None
    """Where to compute: `cpu`, `cuda` ...; the CPU when not given."""

    no_metadata: bool = False
    """Leave out title, date and architecture (modelspec); what loading the file needs is always written."""

    load_original_model_to: str | None = None
    """Device to load the first model to; models stay in their files, and weights are read one by one."""

    load_tuned_model_to: str | None = None
    """Device to load the second model to; models stay in their files, and weights are read one by one."""

    mem_eff_safe_open: bool = False
    """Read weights one by one, which is always done."""

    def __post_init__(self) -> None:
        for name in ("dim", "conv_dim"):
            if (rank := getattr(self, name)) is not None and rank < 1:
                raise UserError(f"--{name} is {rank}; a rank is 1 or more")
        if not 0.5 < self.clamp_quantile <= 1:
            raise UserError(
                f"--clamp_quantile is {self.clamp_quantile:g}; use more than 0.5, up to 1 for no limit"
            )
        if self.min_diff < 0:
            raise UserError(f"--min_diff is {self.min_diff:g}; use 0 or more")


@dataclass(frozen=True)
class ExtractionDetailConfig:
    """How exact it is."""

    exact: bool = False
    """Decompose every layer as a whole, which takes many times longer."""

    verbose: bool = False
    """Tell for every layer how much of its change the LoRA misses, and how much any LoRA of its rank must."""
