"""Configurations of OneTrainer, whose concepts lie in the file or in one that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.errors import UserError
from sfumato.tools.importing.program import (
    Goal,
    Program,
    Settings,
    Values,
    amount,
    choice,
    is_on,
    nothing,
    sides,
    switch,
    to,
    word,
)
from sfumato.tools.importing.prompts import Prompt

_FAMILIES = {
    "STABLE_DIFFUSION_15": "sd",
    "STABLE_DIFFUSION_20": "sd",
    "STABLE_DIFFUSION_20_BASE": "sd",
    "STABLE_DIFFUSION_21": "sd",
    "STABLE_DIFFUSION_21_BASE": "sd",
    "STABLE_DIFFUSION_XL_10_BASE": "sdxl",
    "FLUX_DEV_1": "flux",
}
_METHODS = {"LORA": "lora", "FINE_TUNE": "full"}
_OPTIMIZERS = {
    "adamw": "AdamW",
    "adamw_8bit": "AdamW8bit",
    "adafactor": "Adafactor",
    "lion": "Lion",
    "lion_8bit": "Lion8bit",
    "prodigy": "Prodigy",
    "schedule_free_adamw": "AdamWScheduleFree",
}
_UNITS = {"EPOCH": "epochs", "STEP": "steps"}
_UNIT = choice({"epoch": {}, "step": {}, "never": {}})
_ENCODERS = ("text_encoder", "text_encoder_2")
_FILES = ("concept_file_name", "concepts")


def _goal(settings: Settings) -> Goal:
    kind, method = settings.get("model_type"), settings.get("training_method")
    if kind not in _FAMILIES or method not in _METHODS:
        raise UserError(f"the file trains {method} of {kind}, which is not trained here")
    return Goal(_FAMILIES[kind], _METHODS[method])


def _concepts(settings: Settings) -> Sequence[Settings]:
    found = next((settings[name] for name in _FILES if isinstance(settings.get(name), list)), [])
    size = {"resolution": settings.get("resolution")}
    return [{**concept, **size} for concept in found if concept.get("enabled", True)]


def _consequences(settings: Settings) -> Values:
    return {
        **_every(settings, "save_every", "save_every_n"),
        **_every(settings, "sample_after", "sample_every_n"),
        **_encoders(settings),
        **_optimizer_args(settings),
        **({"v2": True} if "STABLE_DIFFUSION_2" in str(settings.get("model_type")) else {}),
        **_loss_weight(settings),
        **_schedule(settings),
    }


def _schedule(settings: Settings) -> Values:
    """Return the constant rate's name where it has a warmup."""
    is_constant = settings.get("learning_rate_scheduler", "CONSTANT") == "CONSTANT"
    has_warmup = is_constant and settings.get("learning_rate_warmup_steps")
    return {"lr_scheduler": "constant_with_warmup"} if has_warmup else {}


def _every(settings: Settings, name: str, option: str) -> Values:
    unit = _UNITS.get(str(settings.get(f"{name}_unit")))
    return {f"{option}_{unit}": amount(settings[name])} if unit and settings.get(name) else {}


def _encoders(settings: Settings) -> Values:
    """Return which text encoders are trained, and at which rates."""
    trained = [name for name in _ENCODERS if is_on(settings.get(f"{name}.train"))]
    if not trained:
        return {"network_train_unet_only": True}
    rates = [settings[f"{name}.learning_rate"] for name in trained if f"{name}.learning_rate" in settings]
    return {"text_encoder_lr": rates} if rates else {}


def _optimizer_args(settings: Settings) -> Values:
    table = {
        name.partition(".")[2]: value for name, value in settings.items() if name.startswith("optimizer.")
    }
    if str(table.get("optimizer")).lower() not in ("adamw", "adamw_8bit", "prodigy", "lion", "lion_8bit"):
        return {}
    found = [f"{name}={table[name]}" for name in ("weight_decay", "eps") if name in table]
    if "beta1" in table and "beta2" in table:
        found.append(f"betas={table['beta1']},{table['beta2']}")
    return {"optimizer_args": found} if found else {}


def _loss_weight(settings: Settings) -> Values:
    if settings.get("loss_weight_fn") != "MIN_SNR_GAMMA":
        return {}
    return {"min_snr_gamma": settings.get("loss_weight_strength", 5.0)}


def _destination(value: str) -> Values:
    path = Path(value)
    name = {"output_dir": str(path.parent), "output_name": path.stem}
    return {**name, "save_model_as": path.suffix[1:]} if path.suffix in (".safetensors", ".ckpt") else name


def _repeats(value: Any) -> Values | None:
    return {"num_repeats": int(value)} if float(value).is_integer() and value >= 1 else None


def _one(value: Any) -> Values | None:
    return {} if float(value) == 1 else None


def _prompts(settings: Settings) -> Sequence[str]:
    found = next(
        (
            settings[n]
            for n in ("samples", "sample_definition_file_name")
            if isinstance(settings.get(n), list)
        ),
        [],
    )
    return [_prompt(sample) for sample in found if sample.get("enabled", True) and sample.get("prompt")]


def _prompt(sample: Mapping[str, Any]) -> str:
    return Prompt(
        sample["prompt"],
        sample.get("negative_prompt"),
        sample.get("width"),
        sample.get("height"),
        sample.get("diffusion_steps"),
        sample.get("cfg_scale"),
        sample.get("seed"),
    ).line()


_READ_TOGETHER = (
    *("model_type", "training_method", "resolution", "save_every", "sample_after", "samples"),
    *("sample_definition_file_name", "loss_weight_strength", "unet.train", "transformer.train"),
    *(*_FILES, *(f"{name}.{what}" for name in _ENCODERS for what in ("train", "learning_rate"))),
    *("optimizer.weight_decay", "optimizer.eps", "optimizer.beta1", "optimizer.beta2"),
)
_PRECISIONS = {"float_16": "fp16", "bfloat_16": "bf16"}

PROGRAM = Program(
    name="OneTrainer",
    marks=("training_method", "base_model_name"),
    goal=_goal,
    settings={
        **dict.fromkeys(_READ_TOGETHER, nothing),
        "base_model_name": to("pretrained_model_name_or_path"),
        "vae.model_name": to("vae"),
        "output_model_destination": _destination,
        "output_dtype": word("save_precision", {**_PRECISIONS, "float_32": "float"}),
        "train_dtype": word("mixed_precision", {**_PRECISIONS, "float_32": "no"}),
        "batch_size": to("train_batch_size", amount),
        "epochs": to("max_train_epochs", amount),
        "gradient_accumulation_steps": to("gradient_accumulation_steps", amount),
        "gradient_checkpointing": choice(
            {
                "on": {"gradient_checkpointing": True},
                "true": {"gradient_checkpointing": True},
                "cpu_offloaded": {"gradient_checkpointing": True, "cpu_offload_checkpointing": True},
                "off": {},
            }
        ),
        "learning_rate": to("learning_rate"),
        "unet.learning_rate": to("unet_lr"),
        "transformer.learning_rate": to("unet_lr"),
        "learning_rate_scheduler": word(
            "lr_scheduler",
            {name: name for name in ("constant", "linear", "cosine", "cosine_with_restarts")},
        ),
        "learning_rate_warmup_steps": to("lr_warmup_steps", amount),
        "learning_rate_cycles": _one,
        "optimizer.optimizer": word("optimizer_type", _OPTIMIZERS),
        "clip_grad_norm": to("max_grad_norm"),
        "offset_noise_weight": to("noise_offset"),
        "loss_weight_fn": choice({"constant": {}, "min_snr_gamma": {}}),
        "latent_caching": switch(cache_latents=True),
        "aspect_ratio_bucketing": switch(enable_bucket=True),
        "peft_type": choice({"lora": {}, "loha": {"network_module": "networks.loha"}}),
        "output_model_format": choice({"safetensors": {}}),
        "ema": choice({"off": {}}),
        "lora_rank": to("network_dim", amount),
        "lora_alpha": to("network_alpha", amount),
        "save_every_unit": _UNIT,
        "sample_after_unit": _UNIT,
    },
    silent=(
        *("__version", "debug", "tensorboard", "workspace_dir", "cache_dir", "clear_cache", "secrets"),
        *("train_device", "temp_device", "device_indexes", "dataloader_threads", "cloud", "only_cache"),
        *("name", "seed", "type", "concept_stats"),
    ),
    datasets=_concepts,
    dataset_settings={
        **dict.fromkeys(("enabled",), nothing),
        "path": to("image_dir"),
        "resolution": to("resolution", sides),
        "balancing": _repeats,
        "balancing_strategy": choice({"repeats": {}}),
        "loss_weight": _one,
        "image.enable_random_flip": switch(flip_aug=True),
        "text.prompt_source": choice({"sample": {"caption_extension": ".txt"}}),
        "text.enable_tag_shuffling": switch(shuffle_caption=True),
        "text.keep_tags_count": to("keep_tokens", amount),
    },
    prompts=_prompts,
    consequences=_consequences,
)
