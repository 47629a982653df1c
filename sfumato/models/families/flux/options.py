"""The options that only FLUX.1 has."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.checks import at_least
from sfumato.config.tools.adapter_merging import MergeOutput, part_outputs


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
    """File of a ControlNet: to go on from where one is trained, otherwise for preview images."""

    def __post_init__(self) -> None:
        at_least(self, 1, "t5xxl_max_token_length")


@dataclass(frozen=True)
class FluxGenerationOptions:
    """FLUX.1 files and dtypes."""

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
    """Dtype of the CLIP-L text encoder; `dtype` when not given."""

    ae_dtype: str | None = None
    """Dtype of the autoencoder; `dtype` when not given."""

    t5xxl_dtype: str | None = None
    """Dtype of the T5-XXL text encoder; `dtype` when not given."""

    flux_dtype: str | None = None
    """Dtype of the denoiser, fp8 for example; `dtype` when not given."""

    model_type: Literal["flux", "chroma"] = "flux"
    """Which variant of the architecture the files hold."""


@dataclass(frozen=True)
class FluxTextOptions:
    """FLUX.1's text encoders."""

    t5xxl_dtype: str | None = None
    """Dtype of the T5-XXL text encoder; that of `mixed_precision` when not given."""


@dataclass(frozen=True)
class FluxMergeOptions:
    """The FLUX.1 files to merge into."""

    flux_model: str | None = None
    """Denoiser to merge into: file or folder, in either layout; without any model, adapters are merged."""

    clip_l: str | None = None
    """CLIP-L text encoder to merge into."""

    t5xxl: str | None = None
    """T5-XXL text encoder to merge into."""

    clip_l_save_to: str | None = None
    """File to write the merged CLIP-L to."""

    t5xxl_save_to: str | None = None
    """File to write the merged T5-XXL to."""

    mem_eff_load_save: bool = False
    """Read and write one tensor at a time, which is always done."""

    loading_device: str = "cpu"
    """Where adapters are read to; every tensor goes straight to `working_device`."""

    working_device: str = "cpu"
    """Where to compute: `cpu`, `cuda` ..."""

    diffusers: bool = False
    """Insist that the adapters are in diffusers' naming (AI-toolkit); files tell, so this is not needed."""

    def outputs(self, save_to: str | None) -> tuple[MergeOutput, ...]:
        """Return the files to write; none where adapters are merged with each other.

        Raises:
            UserError: a model lacks its file to write, or the other way round.
        """
        return part_outputs(
            [
                (MergeOutput("flux_model", "denoiser", save_to or ""), self.flux_model, "save_to"),
                (MergeOutput("clip_l", "clip_l", self.clip_l_save_to or ""), self.clip_l, "clip_l_save_to"),
                (MergeOutput("t5xxl", "t5xxl", self.t5xxl_save_to or ""), self.t5xxl, "t5xxl_save_to"),
            ]
        )
