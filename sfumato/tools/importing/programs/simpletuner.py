"""Configurations of SimpleTuner, whose data sets lie in a file of data backends.

`config.json` has the options of its command line, with or without dashes; `config.env` the variables of its
scripts, which are read by the options that they become.
"""

from __future__ import annotations

import math
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
    nothing,
    switch,
    to,
    word,
)
from sfumato.tools.importing.prompts import Prompt

_VARIABLES = {
    "MODEL_TYPE": "model_type",
    "MODEL_FAMILY": "model_family",
    "MODEL_NAME": "pretrained_model_name_or_path",
    "LORA_TYPE": "lora_type",
    "LORA_RANK": "lora_rank",
    "DATALOADER_CONFIG": "data_backend_config",
    "OUTPUT_DIR": "output_dir",
    "RESOLUTION": "resolution",
    "RESOLUTION_TYPE": "resolution_type",
    "TRAIN_BATCH_SIZE": "train_batch_size",
    "MAX_NUM_STEPS": "max_train_steps",
    "NUM_EPOCHS": "num_train_epochs",
    "LEARNING_RATE": "learning_rate",
    "LR_SCHEDULE": "lr_scheduler",
    "LR_WARMUP_STEPS": "lr_warmup_steps",
    "OPTIMIZER": "optimizer",
    "MIXED_PRECISION": "mixed_precision",
    "GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps",
    "USE_GRADIENT_CHECKPOINTING": "gradient_checkpointing",
    "CHECKPOINTING_STEPS": "checkpointing_steps",
    "CHECKPOINTING_LIMIT": "checkpoints_total_limit",
    "CAPTION_DROPOUT_PROBABILITY": "caption_dropout_probability",
    "TRAINING_SEED": "seed",
    "VALIDATION_PROMPT": "validation_prompt",
    "VALIDATION_STEPS": "validation_steps",
    "VALIDATION_SEED": "validation_seed",
    "VALIDATION_GUIDANCE": "validation_guidance",
}
_FAMILIES = {"flux": "flux", "sdxl": "sdxl", "sd1x": "sd", "sd2x": "sd"}
_METHODS = {"lora": "lora", "full": "full"}
_OPTIMIZERS = {
    "adamw": "AdamW",
    "adamw_bf16": "AdamW",
    "bnb-adamw8bit": "AdamW8bit",
    "bnb-lion8bit": "Lion8bit",
}
_BACKENDS = "data_backend_config"


def with_names_of_options(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings by the names of options: without dashes before them, and instead of variables."""
    return {_VARIABLES.get(name, name.removeprefix("--")): value for name, value in content.items()}


def _goal(settings: Settings) -> Goal:
    family, method = settings.get("model_family"), settings.get("model_type")
    if family not in _FAMILIES or method not in _METHODS:
        raise UserError(f"the file trains {method} of {family}, which is not trained here")
    return Goal(_FAMILIES[family], _METHODS[method])


def _consequences(settings: Settings) -> Values:
    side = _side(settings.get("resolution"), settings.get("resolution_type"))
    lora = {"network_alpha": amount(settings.get("lora_alpha", settings.get("lora_rank", 16)))}
    return {
        **({"resolution": side} if side else {}),
        **({"network_train_unet_only": True} if "train_text_encoder" not in settings else {}),
        **(lora if settings["model_type"] == "lora" else {}),
        **({"v2": True} if settings["model_family"] == "sd2x" else {}),
        "enable_bucket": True,
        "output_name": Path(str(settings.get("output_dir", "last"))).name,
        "caption_extension": ".txt",
        **({"lr_warmup_steps": 0} if settings.get("lr_scheduler") == "constant" else {}),
        **_length(settings),
        **_kept(settings),
    }


def _length(settings: Settings) -> Values:
    """Return steps or epochs; either is 0 where the other one counts."""
    names = {"max_train_steps": "max_train_steps", "num_train_epochs": "max_train_epochs"}
    found = {ours: amount(settings[name]) for name, ours in names.items() if name in settings}
    return {name: number for name, number in found.items() if number > 0}


def _kept(settings: Settings) -> Values:
    kept = settings.get("checkpoints_total_limit")
    every = settings.get("checkpoint_step_interval", settings.get("checkpointing_steps"))
    return {"save_last_n_steps": max(1, (int(kept) - 1) * int(every))} if kept and every else {}


def _side(resolution: Any, kind: Any) -> int | None:
    """Return the side of a square of the area that is meant; None where another measure is."""
    if resolution is None or kind not in _AREAS:
        return None
    size = float(resolution)
    return round(math.sqrt(size * 1e6)) if kind == "area" else int(size)


_AREAS = ("area", "pixel_area", None)
"""Megapixels, or the side of a square of that area, which is usual."""


def _backends(settings: Settings) -> Sequence[Settings]:
    found = settings.get(_BACKENDS, [])
    if not isinstance(found, list):
        return []
    images = [table for table in found if table.get("dataset_type", "image") == "image"]
    return [_sized(table, settings) for table in images if not table.get("disabled")]


def _sized(table: Settings, settings: Settings) -> Settings:
    size = table.get("resolution", settings.get("resolution"))
    kind = table.get("resolution_type", settings.get("resolution_type"))
    side = _side(size, kind)
    rest = {name: value for name, value in table.items() if not name.startswith("resolution")}
    return {**rest, "resolution": side} if side else {**rest, "resolution_type": f"{size} ({kind})"}


def _prompts(settings: Settings) -> Sequence[str]:
    text = settings.get("validation_prompt")
    names = ("num_inference_steps", "guidance", "seed")
    steps, scale, seed = (settings.get(f"validation_{name}") for name in names)
    return [Prompt(text, steps=steps, scale=scale, seed=seed).line()] if text else []


_READ_TOGETHER = (
    *("model_family", "model_type", "resolution", "resolution_type", _BACKENDS, "max_train_steps"),
    *("num_train_epochs", "checkpoints_total_limit", "lora_alpha"),
    *(f"validation_{name}" for name in ("prompt", "num_inference_steps", "guidance", "seed")),
)
_STEPS = to("save_every_n_steps", amount)

PROGRAM = Program(
    name="SimpleTuner",
    marks=("model_family", _BACKENDS),
    goal=_goal,
    settings={
        **dict.fromkeys(_READ_TOGETHER, nothing),
        "pretrained_model_name_or_path": to("pretrained_model_name_or_path"),
        "output_dir": to("output_dir"),
        "lora_type": choice({"standard": {}}),
        "lora_rank": to("network_dim", amount),
        "train_batch_size": to("train_batch_size", amount),
        "gradient_accumulation_steps": to("gradient_accumulation_steps", amount),
        "gradient_checkpointing": switch(gradient_checkpointing=True),
        "learning_rate": to("learning_rate", amount),
        "lr_scheduler": word(
            "lr_scheduler",
            {
                **{name: name for name in ("constant", "linear", "cosine", "polynomial")},
                "constant_with_warmup": "constant_with_warmup",
                "cosine_with_restarts": "cosine_with_restarts",
            },
        ),
        "lr_warmup_steps": to("lr_warmup_steps", amount),
        "optimizer": word("optimizer_type", _OPTIMIZERS),
        "mixed_precision": word("mixed_precision", {"bf16": "bf16", "fp16": "fp16", "no": "no"}),
        "checkpointing_steps": _STEPS,
        "checkpoint_step_interval": _STEPS,
        "caption_dropout_probability": to("caption_dropout_rate", amount),
        "max_grad_norm": to("max_grad_norm", amount),
        "snr_gamma": to("min_snr_gamma", amount),
        "noise_offset": to("noise_offset", amount),
        "seed": to("seed", amount),
        "validation_steps": to("sample_every_n_steps", amount),
        "validation_step_interval": to("sample_every_n_steps", amount),
        "base_model_precision": choice({"no_change": {}}),
    },
    silent=(
        *("report_to", "tracker_", "disable_benchmark", "id", "type", "cache_dir", "metadata_backend"),
        *("dataset_type", "default"),
    ),
    datasets=_backends,
    dataset_settings={
        "instance_data_dir": to("image_dir"),
        "resolution": to("resolution"),
        "repeats": lambda value: {"num_repeats": int(value) + 1},
        "caption_strategy": choice({"textfile": {"caption_extension": ".txt"}}),
        "is_regularisation_data": switch(is_reg=True),
    },
    prompts=_prompts,
    consequences=_consequences,
)
