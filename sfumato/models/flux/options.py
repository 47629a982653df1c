"""The options that only FLUX.1 has."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class FluxOptions:
    """FLUX.1."""

    clip_l: str | None = None
    """File of the CLIP-L text encoder."""

    t5xxl: str | None = None
    """File of the T5-XXL text encoder."""

    ae: str | None = None
    """File of the autoencoder, usually called ae.safetensors."""

    t5xxl_max_token_length: int | None = None
    """Length of captions for T5, in tokens; 512 for dev and 256 for schnell when not given."""

    apply_t5_attn_mask: bool = False
    """Hide the padding behind a caption from T5 and from the attention of the denoiser."""

    model_type: Literal["flux", "chroma"] = "flux"
    """Which variant of the architecture the base is."""

    controlnet_model_name_or_path: str | None = None
    """File of a ControlNet for preview pictures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "t5xxl_max_token_length")


@dataclass(frozen=True)
class FluxGenerationOptions:
    """FLUX.1 files and number formats."""

    ckpt_path: str = field(default="", metadata={"required": True})
    """File or folder of the denoiser."""

    clip_l: str | None = None
    """File of the CLIP-L text encoder."""

    t5xxl: str | None = None
    """File of the T5-XXL text encoder."""

    ae: str | None = None
    """File of the autoencoder, usually called ae.safetensors."""

    apply_t5_attn_mask: bool = False
    """Hide the padding behind a prompt from T5 and from the attention of the denoiser."""

    clip_l_dtype: str | None = None
    """Number format of the CLIP-L text encoder; `dtype` when not given."""

    ae_dtype: str | None = None
    """Number format of the autoencoder; `dtype` when not given."""

    t5xxl_dtype: str | None = None
    """Number format of the T5-XXL text encoder; `dtype` when not given."""

    flux_dtype: str | None = None
    """Number format of the denoiser, fp8 for example; `dtype` when not given."""

    model_type: Literal["flux", "chroma"] = "flux"
    """Which variant of the architecture the files hold."""


@dataclass(frozen=True)
class FluxTextOptions:
    """FLUX.1's text encoders."""

    t5xxl_dtype: str | None = None
    """Number format of the T5-XXL text encoder; that of `mixed_precision` when not given."""
