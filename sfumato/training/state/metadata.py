"""The `ss_*` record that adapter files carry: how they were trained, under sd-scripts' keys."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato import __version__
from sfumato.checkpoints.hashes import file_sha256, legacy_file_hash
from sfumato.checkpoints.metadata import as_strings
from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.data.validation import ValidationConfig
from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.data.batches import statistics
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import TrainingData
from sfumato.models.interface.family import Family
from sfumato.training.core.plan import Plan, Step

SAME_NAME: dict[type, tuple[str, ...]] = {
    SavingConfig: ("output_name", "training_comment"),
    OptimizerConfig: ("learning_rate", "max_grad_norm"),
    NetworkConfig: (
        "unet_lr",
        "network_module",
        "network_dim",
        "network_alpha",
        "network_dropout",
        "scale_weight_norms",
    ),
    MemoryConfig: ("gradient_checkpointing", "lowram"),
    LengthConfig: ("gradient_accumulation_steps",),
    ScheduleConfig: ("lr_warmup_steps",),
    PrecisionConfig: ("mixed_precision", "full_fp16", "fp8_base", "fp8_base_unet"),
    ModelConfig: ("v2", "clip_skip"),
    CaptionConfig: (
        "max_token_length",
        "caption_dropout_rate",
        "caption_dropout_every_n_epochs",
        "caption_tag_dropout_rate",
    ),
    CachingConfig: ("cache_latents",),
    NoiseConfig: (
        "noise_offset",
        "multires_noise_iterations",
        "multires_noise_discount",
        "adaptive_noise_scale",
        "zero_terminal_snr",
        "ip_noise_gamma",
        "noise_offset_random_strength",
        "ip_noise_gamma_random_strength",
    ),
    LossConfig: ("prior_loss_weight", "min_snr_gamma", "loss_type", "huber_schedule", "huber_c"),
}
"""Options that are recorded as `ss_<name>` with the value they have."""

FLOW = (
    "weighting_scheme",
    "logit_mean",
    "logit_std",
    "mode_scale",
    "guidance_scale",
    "timestep_sampling",
    "sigmoid_scale",
    "model_prediction_type",
    "discrete_flow_shift",
)

FOLDER_FORM = ("color_aug", "flip_aug", "random_crop", "enable_bucket", "bucket_no_upscale")


def adapter_metadata(
    run: Run,
    family: Family,
    training_set: TrainingData,
    plan: Plan,
    *,
    seed: int,
    world: int,
    optimizer: str,
    scheduler: str,
    started_at: float,
    finds_own_rates: bool = False,
    sha256: Callable[[Path], str] = file_sha256,
) -> dict[str, str]:
    """Return everything that is known when training starts; values are strings as Python prints them.

    Args:
        optimizer, scheduler: their descriptions (`OptimizerPlan.description`, `schedulers.describe`).
        started_at: Unix seconds.
        finds_own_rates: whether the optimizer goes by none of the rates in the options.
        sha256: returns the hash of a file, which somebody else may have read already.
    """
    values: dict[str, Any] = {
        "ss_session_id": random.SystemRandom().randint(0, 2**32),
        "ss_training_started_at": started_at,
    }
    for section, names in SAME_NAME.items():
        values |= {f"ss_{name}": getattr(run[section], name) for name in names}
    values |= {
        "ss_text_encoder_lr": _text_encoder_rates(run, family),
        "ss_face_crop_aug_range": run[ImageConfig].face_range,
        "ss_num_train_images": training_set.num_train_images,
        "ss_num_reg_images": training_set.num_reg_images,
        "ss_num_batches_per_epoch": plan.num_batches,
        "ss_num_epochs": plan.num_epochs,
        "ss_max_train_steps": plan.num_steps,
        "ss_lr_scheduler": scheduler,
        "ss_optimizer": optimizer,
        "ss_base_model_version": family.identity.base_version,
        "ss_seed": seed,
        "ss_debiased_estimation": run[LossConfig].debiased_estimation_loss,
        "ss_sd_scripts_commit_hash": f"sfumato {__version__}",
    }
    if run[ImageConfig].resize_interpolation:
        values["ss_resize_interpolation"] = run[ImageConfig].resize_interpolation
    if FlowConfig in run:
        values |= {f"ss_{name}": getattr(run[FlowConfig], name) for name in FLOW}
    values |= _network_arguments(run.get(NetworkConfig, NetworkConfig()))
    values |= _base_model(run[ModelConfig], sha256)
    if isinstance(training_set, TrainingSet):
        values |= _data_set(run, training_set, world)
    else:
        values["ss_dataset_class"] = run[DatasetConfig].dataset_class
    values |= family.metadata()
    if finds_own_rates:
        values |= dict.fromkeys(("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr"))
    return as_strings(values)


def at_save(step: Step) -> dict[str, str]:
    """Return what is known only when a file is written."""
    return {
        "ss_training_finished_at": str(time.time()),
        "ss_steps": str(step.number),
        "ss_epoch": str(step.epoch),
    }


def _text_encoder_rates(run: Run, family: Family) -> list[float] | float | None:
    rates = run.get(NetworkConfig, NetworkConfig()).text_encoder_lr
    if not rates:
        return None
    return list(rates) if family.identity.records_all_text_rates else rates[0]


def _network_arguments(config: NetworkConfig) -> dict[str, str]:
    if not config.network_args:
        return {}
    arguments: dict[str, Any] = dict(pair.split("=", 1) for pair in config.network_args)
    if not config.dim_from_weights:
        arguments.setdefault("dropout", config.network_dropout)
    return {"ss_network_args": json.dumps(arguments)}


def _base_model(config: ModelConfig, sha256: Callable[[Path], str]) -> dict[str, str]:
    values = {}
    for key, hash_key, name in (
        ("ss_sd_model_name", "sd_model_hash", config.pretrained_model_name_or_path),
        ("ss_vae_name", "vae_hash", config.vae),
    ):
        if not name:
            continue
        path = Path(name)
        values[key] = path.name if path.exists() else name
        if path.exists():
            values[f"ss_{hash_key}"] = legacy_file_hash(path)
            values[f"ss_new_{hash_key}"] = sha256(path) if path.is_file() else "IsADirectory"
    return values


def _data_set(run: Run, training_set: TrainingSet, world: int) -> dict[str, Any]:
    sets = training_set.sets
    described = [statistics.describe(images) for images in sets]
    values = {
        "ss_dataset_dirs": json.dumps(statistics.folders(sets, is_reg=False)),
        "ss_tag_frequency": json.dumps(training_set.tag_frequency()),
    }
    if training_set.validation is not None:
        values |= _validation(run, training_set.validation)
    if run[DatasetConfig].dataset_config:
        return values | {"ss_datasets": json.dumps(described)}
    only, images, captions = described[0], run[ImageConfig], run[CaptionConfig]
    batch_size = run[DatasetConfig].train_batch_size
    return values | {
        "ss_batch_size_per_device": batch_size,
        "ss_total_batch_size": batch_size * world * run[LengthConfig].gradient_accumulation_steps,
        "ss_resolution": tuple(only["resolution"]),
        **{f"ss_{name}": getattr(images, name) for name in FOLDER_FORM},
        "ss_shuffle_caption": captions.shuffle_caption,
        "ss_keep_tokens": captions.keep_tokens,
        "ss_min_bucket_reso": only["min_bucket_reso"],
        "ss_max_bucket_reso": only["max_bucket_reso"],
        "ss_reg_dataset_dirs": json.dumps(statistics.folders(sets, is_reg=True)),
        "ss_bucket_info": json.dumps(only["bucket_info"]),
    }


def _validation(run: Run, held_back: TrainingSet) -> dict[str, Any]:
    names = {
        DatasetConfig: ("validation_seed", "validation_split"),
        ValidationConfig: ("validate_every_n_epochs", "validate_every_n_steps", "max_validation_steps"),
    }
    values = {f"ss_{name}": getattr(run[section], name) for section, own in names.items() for name in own}
    return values | {"ss_num_validation_images": held_back.num_train_images}
