"""How a LoRA is brought to another rank."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least
from sfumato.errors import UserError


@dataclass(frozen=True)
class ResizingConfig:
    """The resizing."""

    model: str | None = None
    """LoRA to read."""

    save_to: str | None = None
    """File to write: .safetensors, or .pt or .ckpt for a pickled one without metadata."""

    new_rank: int = 4
    """Rank of every layer; with a dynamic method, the highest. At most a layer's smaller side."""

    new_conv_rank: int | None = None
    """The same for convolutions; `new_rank` when not given."""

    dynamic_method: Literal[None, "sv_ratio", "sv_fro", "sv_cumulative"] = None
    """Choose each layer's rank by its singular values: those above the largest divided by `dynamic_param`; as
    many as keep that share of the norm (sv_fro) or of their sum (sv_cumulative)."""

    dynamic_param: float | None = None
    """What the dynamic method measures with: above 1 for sv_ratio, a share for the others."""

    save_precision: Literal[None, "float", "fp16", "bf16"] = None
    """Dtype to write; float when not given."""

    device: str | None = None
    """Where to compute: `cpu`, `cuda` ..."""

    svd_lowrank_niter: int = 2
    """Rounds of an approximate decomposition of large layers; 0 decomposes them as a whole, as is done here
    whatever the value."""

    verbose: bool = False
    """Tell what is kept of each layer."""

    def __post_init__(self) -> None:
        at_least(self, 0, "svd_lowrank_niter")
        for name in ("new_rank", "new_conv_rank"):
            if (rank := getattr(self, name)) is not None and rank < 1:
                raise UserError(f"--{name} is {rank}; a rank is 1 or more")
        if self.dynamic_method and self.dynamic_param is None:
            raise UserError(
                f"--dynamic_method {self.dynamic_method} needs --dynamic_param: what it measures with"
            )
        if self.dynamic_param is not None and not self.dynamic_method:
            raise UserError("--dynamic_param needs --dynamic_method: what it is for")
        if self.dynamic_param is not None and self.dynamic_method:
            self._check_parameter(self.dynamic_method, self.dynamic_param)

    def _check_parameter(self, method: str, parameter: float) -> None:
        if method == "sv_ratio" and parameter < 1:
            raise UserError(f"--dynamic_param is {parameter:g}; sv_ratio divides by it, so use 1 or more")
        if method != "sv_ratio" and not 0 < parameter <= 1:
            raise UserError(
                f"--dynamic_param is {parameter:g}; for {method} it is a share, above 0 and up to 1"
            )
