"""The options that only Stable Diffusion 3 has."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.checks import above, at_least, between
from sfumato.config.rule import excludes, given, idle, implies, needs
from sfumato.config.tools.adapter_merging import MergeOutput, part_outputs


@dataclass(frozen=True)
class Sd3Options:
    """Stable Diffusion 3 and 3.5."""

    clip_l: str | None = None
    """File of the CLIP-L text encoder, if the base model does not hold it."""

    clip_g: str | None = None
    """File of the CLIP-G text encoder, if the base model does not hold it."""

    t5xxl: str | None = None
    """File of the T5-XXL text encoder, if the base model does not hold it; the model works without."""

    save_clip: bool = False
    """Write both CLIP text encoders into the model's file; those that are trained have files of their own
    otherwise."""

    save_t5xxl: bool = False
    """Write T5-XXL into the model's file, likewise."""

    t5xxl_device: str | None = None
    """Device that T5-XXL runs on where it is not trained; where everything runs when not given."""

    t5xxl_dtype: str | None = None
    """Dtype of T5-XXL where it is not trained; that of `mixed_precision` when not given."""

    t5xxl_max_token_length: int | None = 256
    """Length of captions for T5, in tokens."""

    apply_lg_attn_mask: bool = False
    """Hide the padding behind a caption from CLIP-L and CLIP-G."""

    apply_t5_attn_mask: bool = False
    """Hide the padding behind a caption from T5."""

    clip_l_dropout_rate: float = 0.0
    """Share of captions that the model is trained without CLIP-L's part of, from 0 to 1."""

    clip_g_dropout_rate: float = 0.0
    """Share of captions that the model is trained without CLIP-G's part of, from 0 to 1."""

    t5_dropout_rate: float = 0.0
    """Share of captions that the model is trained without T5's part of, from 0 to 1."""

    pos_emb_random_crop_rate: float = 0.0
    """Share of steps in which positions come from anywhere in the table instead of its middle; for SD3.5."""

    enable_scaled_pos_embed: bool = False
    """Scale the positions of SD3.5-medium to each resolution of the data."""

    def __post_init__(self) -> None:
        at_least(self, 1, "t5xxl_max_token_length")
        between(self, 0, 1, "clip_l_dropout_rate", "clip_g_dropout_rate", "t5_dropout_rate")
        between(self, 0, 1, "pos_emb_random_crop_rate")


@dataclass(frozen=True)
class Sd3EncoderOptions:
    """What becomes of single text encoders where whole models are trained."""

    train_t5xxl: bool = False
    """Train T5-XXL along with both CLIP text encoders."""

    use_t5xxl_cache_only: bool = False
    """Cache what T5-XXL makes of captions, and let both CLIP text encoders run in every step."""


ENCODER_RULES = (
    needs(["train_t5xxl"], given("train_text_encoder"), reason="T5 is trained along with the others"),
    excludes(["train_t5xxl"], ["use_t5xxl_cache_only"], "what changes cannot be cached"),
    implies("use_t5xxl_cache_only", {"cache_text_encoder_outputs": True}),
    idle(["learning_rate_te3"], given("train_t5xxl")),
)
"""What these options mean to others."""


@dataclass(frozen=True)
class Sd3NoiseOptions:
    """The noise levels that Stable Diffusion 3 is trained at."""

    weighting_scheme: Literal["sigma_sqrt", "logit_normal", "mode", "cosmap", "none", "uniform"] = "uniform"
    """How noise levels are drawn (logit_normal, mode) or weighed (sigma_sqrt, cosmap); none and uniform draw
    evenly."""

    logit_mean: float = 0.0
    """Mean of the normal distribution behind logit_normal."""

    logit_std: float = 1.0
    """Standard deviation of the normal distribution behind logit_normal."""

    mode_scale: float = 1.29
    """How strongly `mode` prefers the middle noise levels."""

    training_shift: float = 1.0
    """Shift of the noise levels towards noise; 1 is none."""

    sd3_schedule: Literal["2024", "2026"] = "2026"
    """Which version of sd-scripts noise levels are drawn as in. 2026: a large number drawn is much noise,
    shifted by `training_shift`. 2024: a large number is little noise, and the shift is always 3."""

    def __post_init__(self) -> None:
        above(self, 0, "logit_std", "training_shift")


NOISE_RULES = (
    idle(["logit_mean", "logit_std"], given("weighting_scheme", "logit_normal")),
    idle(["mode_scale"], given("weighting_scheme", "mode")),
    idle(["training_shift"], given("sd3_schedule", "2026")),
)
"""What these options mean to each other."""


@dataclass(frozen=True)
class Sd3GenerationOptions:
    """Stable Diffusion 3 files, and how they are run."""

    ckpt_path: str = field(default="", metadata={"required": True})
    """File or folder of the base model."""

    clip_l: str | None = None
    """File of the CLIP-L text encoder, if the base model does not hold it."""

    clip_g: str | None = None
    """File of the CLIP-G text encoder, if the base model does not hold it."""

    t5xxl: str | None = None
    """File of the T5-XXL text encoder, if the base model does not hold it; the model works without."""

    vae: str | None = None
    """File of an autoencoder that replaces that of the base model."""

    t5xxl_token_length: int = 256
    """Length of prompts for T5, in tokens."""

    apply_lg_attn_mask: bool = False
    """Hide the padding behind a prompt from CLIP-L and CLIP-G."""

    apply_t5_attn_mask: bool = False
    """Hide the padding behind a prompt from T5."""

    do_not_use_t5xxl: bool = False
    """Leave T5 out, which saves memory; the model follows long prompts less well."""

    attn_mode: str = "torch"
    """How attention is computed; it always runs in PyTorch's scaled_dot_product_attention."""

    fp16: bool = False
    """Compute in float16."""

    bf16: bool = False
    """Compute in bfloat16."""

    tokenizer_cache_dir: str | None = None
    """Folder in which tokenizers are kept, so that later runs need no network."""

    def __post_init__(self) -> None:
        at_least(self, 1, "t5xxl_token_length")


GENERATION_RULES = (
    implies("fp16", {"dtype": "float16"}),
    implies("bf16", {"dtype": "bfloat16"}),
)
"""What these options mean to others."""


@dataclass(frozen=True)
class Sd3CachingOptions:
    """Text encoders in files of their own."""

    clip_l: str | None = None
    """File of the CLIP-L text encoder."""

    clip_g: str | None = None
    """File of the CLIP-G text encoder."""

    t5xxl: str | None = None
    """File of the T5-XXL text encoder."""

    t5xxl_max_token_length: int | None = None
    """Length of captions for T5, in tokens; 512 for FLUX.1 dev and 256 for others when not given."""

    apply_lg_attn_mask: bool = False
    """Hide the padding behind a caption from CLIP-L and CLIP-G."""

    apply_t5_attn_mask: bool = False
    """Hide the padding behind a caption from T5."""


@dataclass(frozen=True)
class Sd3TextOptions:
    """T5-XXL."""

    t5xxl_dtype: str | None = None
    """Dtype of the T5-XXL text encoder; that of `mixed_precision` when not given."""


@dataclass(frozen=True)
class Sd3MergeOptions:
    """The Stable Diffusion 3 files to merge into."""

    sd3_model: str | None = None
    """Model to merge into: file or folder, with the text encoders in it; without any, adapters are merged."""

    clip_l: str | None = None
    """CLIP-L text encoder to merge into, if it has a file of its own."""

    clip_g: str | None = None
    """CLIP-G text encoder to merge into, if it has a file of its own."""

    t5xxl: str | None = None
    """T5-XXL text encoder to merge into, if it has a file of its own."""

    clip_l_save_to: str | None = None
    """File to write the merged CLIP-L to."""

    clip_g_save_to: str | None = None
    """File to write the merged CLIP-G to."""

    t5xxl_save_to: str | None = None
    """File to write the merged T5-XXL to."""

    working_device: str = "cpu"
    """Where to compute: `cpu`, `cuda` ..."""

    def outputs(self, save_to: str | None) -> tuple[MergeOutput, ...]:
        """Return the files to write; none where adapters are merged with each other.

        Raises:
            UserError: a model lacks its file to write, or the other way round.
        """
        encoders = (
            ("clip_l", self.clip_l, self.clip_l_save_to),
            ("clip_g", self.clip_g, self.clip_g_save_to),
            ("t5xxl", self.t5xxl, self.t5xxl_save_to),
        )
        whole = MergeOutput("sd3_model", "denoiser", save_to or ""), self.sd3_model, "save_to"
        texts = (
            (MergeOutput(part, part, to or ""), model, f"{part}_save_to") for part, model, to in encoders
        )
        return part_outputs([whole, *texts])


@dataclass(frozen=True)
class Sd3PartOptions:
    """The parts of Stable Diffusion 3."""

    dit: str = field(default="", metadata={"required": True})
    """File of the transformer; what else it holds stays in."""

    vae: str | None = None
    """File of the autoencoder."""

    clip_l: str | None = None
    """File of the CLIP-L text encoder."""

    clip_g: str | None = None
    """File of the CLIP-G text encoder."""

    t5xxl: str | None = None
    """File of the T5-XXL text encoder."""
