"""What tools that encode data ahead share with the trainers, and what of it means nothing there."""

from collections.abc import Mapping

from sfumato.config.rules.effects import because
from sfumato.config.run.distributed import DistributedConfig
from sfumato.config.run.file import FileConfig
from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.output.hub import HubConfig
from sfumato.config.run.output.metadata import MetadataConfig
from sfumato.config.run.output.preview import PreviewConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.config.scripts.option import options_of
from sfumato.models.interface.catalogue import our_facts

_TRAINING = (
    LengthConfig, PrecisionConfig, MemoryConfig, NoiseConfig, LossConfig, FlowConfig, SavingConfig,
    MetadataConfig, HubConfig, TrackingConfig, PreviewConfig,
)  # fmt: skip

OWN_OPTIONS = tuple(section for facts in our_facts() for section in facts.own_options)
"""About parts that only one family has."""

TEXT_OPTIONS = tuple(section for facts in our_facts() for section in facts.own_text_options)
"""About text encoders that only one family has, where captions are encoded."""

SECTIONS = (*_TRAINING, DistributedConfig, *OWN_OPTIONS, FileConfig)
"""Sections of these tools, besides those about the data and their own."""

ABSENT = frozenset(
    {
        "cpu_offload_checkpointing", "debiased_estimation_loss", "fp8_base_unet", "initial_epoch",
        "initial_step", "min_snr_gamma", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss",
        "skip_until_initial_step", "deepspeed", "zero_stage", "zero3_init_flag", "zero3_save_16bit_model",
        "fp16_master_weights_and_gradients", "offload_optimizer_device", "offload_optimizer_nvme_path",
        "offload_param_device", "offload_param_nvme_path", "no_metadata", "training_comment",
        "save_model_as", "split_mode", "validation_seed", "validation_split",
    }
)  # fmt: skip
"""Options that these tools have not, though they share sections with the trainers."""

CHOICES = {"weighting_scheme": ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none", "uniform")}
"""Values that an option allows here; the trainers leave one out."""

_USED = {"seed", "masked_loss", "output_dir", "mixed_precision", "highvram", "huggingface_token"}


NO_WORKERS: Mapping[str, str] = because(
    "images are decoded in threads of one process",
    ("max_data_loader_n_workers", "persistent_data_loader_workers"),
)
"""Options about processes that load data."""

NO_TRAINING: Mapping[str, str] = because(
    "nothing is trained here",
    (
        *(options_of(_TRAINING, {}).keys() - _USED - ABSENT),
        "v_parameterization",
        "prediction_type",
        "controlnet_model_name_or_path",
    ),
)
"""Options about training."""

NO_MASKED_IMAGES: Mapping[str, str] = because(
    "what masks leave of an image is another one each time, and has no cache; leave it out",
    ("train_inpainting",),
)
"""Options about images that training encodes anew in every step."""

NO_TEXT: Mapping[str, str] = because(
    "no captions are encoded here",
    (
        "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "text_encoder_batch_size",
        "clip_skip", "max_token_length", "clip_l", "clip_g", "t5xxl", "t5xxl_max_token_length",
        "apply_lg_attn_mask", "apply_t5_attn_mask",
        "tokenizer_cache_dir",
    ),
)  # fmt: skip
"""Options about text encoders."""

NO_IMAGES: Mapping[str, str] = because(
    "no images are encoded here",
    ("cache_latents", "cache_latents_to_disk", "vae_batch_size", "vae", "ae", "train_inpainting"),
)
"""Options about autoencoders."""
