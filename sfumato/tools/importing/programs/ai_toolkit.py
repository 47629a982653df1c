"""Configurations of AI-toolkit: a job with one process."""

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

_ARCHITECTURES = {"flux": "flux", "sdxl": "sdxl", "sd1": "sd", "sd2": "sd"}
_SWITCHES = {"model.is_flux": "flux", "model.is_xl": "sdxl"}
_OPTIMIZERS = {
    "adamw": "AdamW",
    "adamw8bit": "AdamW8bit",
    "adafactor": "Adafactor",
    "prodigy": "Prodigy",
    "lion": "Lion",
    "lion8bit": "Lion8bit",
}
_SAVED = {
    "float16": "fp16",
    "fp16": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "float32": "float",
    "fp32": "float",
}
_COMPUTED = {**_SAVED, "float32": "no", "fp32": "no"}
_NAME = "name_of_job"


def only_process(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a job's process, with the job's name; anything else as it is.

    Raises:
        UserError: the job has another number of processes than one.
    """
    job = content.get("config")
    if not isinstance(job, Mapping) or "process" not in job:
        return content
    if len(job["process"]) != 1:
        raise UserError("config.process holds several processes; import a file for each")
    return {_NAME: job.get("name", "last"), **job["process"][0]}


def _goal(settings: Settings) -> Goal:
    method = "lora" if any(name.startswith("network.") for name in settings) else "full"
    arch = settings.get("model.arch")
    if arch is not None and arch not in _ARCHITECTURES:
        raise UserError(f"model.arch is {arch}, which is not trained here")
    told = next((family for name, family in _SWITCHES.items() if is_on(settings.get(name))), "sd")
    return Goal(_ARCHITECTURES[arch] if arch else told, method)


def _consequences(settings: Settings) -> Values:
    name = str(settings[_NAME])
    folder = Path(str(settings.get("training_folder", "output"))) / name
    return {
        "output_dir": str(folder),
        "output_name": name,
        "enable_bucket": True,
        **_caching(settings.get("datasets", [])),
        **({} if is_on(settings.get("train.train_text_encoder")) else {"network_train_unet_only": True}),
        **({"v2": True} if settings.get("model.arch") == "sd2" else {}),
        **_kept(settings),
    }


def _caching(datasets: Sequence[Settings]) -> Values:
    """Return whether latents are cached; a file on the disk holds those of one resolution here."""
    if not any(is_on(table.get("cache_latents_to_disk")) for table in datasets):
        return {}
    is_single = all(isinstance(sides(table.get("resolution", 512)), int) for table in datasets)
    return {"cache_latents": True} | ({"cache_latents_to_disk": True} if is_single else {})


def _kept(settings: Settings) -> Values:
    """Return how many steps back files are kept."""
    kept, every = settings.get("save.max_step_saves_to_keep"), settings.get("save.save_every")
    return {"save_last_n_steps": max(1, (int(kept) - 1) * int(every))} if kept and every else {}


def _decay(value: Any) -> Values:
    return {"optimizer_args": [f"weight_decay={amount(value)}"]}


def _extension(value: str) -> Values:
    return {"caption_extension": value if value.startswith(".") else f".{value}"}


def _prompts(settings: Settings) -> Sequence[str]:
    names = ("neg", "width", "height", "sample_steps", "guidance_scale", "seed")
    rest = [settings.get(f"sample.{name}") for name in names]
    return [
        Prompt(text, *rest).line() for text in settings.get("sample.prompts", []) if isinstance(text, str)
    ]


_READ_TOGETHER = (
    *(_NAME, "training_folder", "datasets", "model.arch", *_SWITCHES, "train.train_text_encoder"),
    *("save.max_step_saves_to_keep", "train.skip_first_sample", "train.train_unet"),
    *(f"sample.{name}" for name in ("prompts", "neg", "width", "height", "sample_steps", "guidance_scale")),
    *("sample.seed",),
)

PROGRAM = Program(
    name="AI-toolkit",
    marks=("training_folder", "model.name_or_path"),
    goal=_goal,
    settings={
        **dict.fromkeys(_READ_TOGETHER, nothing),
        "model.name_or_path": to("pretrained_model_name_or_path"),
        "model.is_v2": switch(v2=True),
        "network.type": choice({"lora": {}}),
        "network.linear": to("network_dim", amount),
        "network.linear_alpha": to("network_alpha", amount),
        "save.dtype": word("save_precision", _SAVED),
        "save.save_every": to("save_every_n_steps", amount),
        "train.batch_size": to("train_batch_size", amount),
        "train.steps": to("max_train_steps", amount),
        "train.gradient_accumulation_steps": to("gradient_accumulation_steps", amount),
        "train.gradient_checkpointing": switch(gradient_checkpointing=True),
        "train.noise_scheduler": choice({"flowmatch": {}, "ddpm": {}}),
        "train.optimizer": word("optimizer_type", _OPTIMIZERS),
        "train.optimizer_params.weight_decay": _decay,
        "train.lr": to("learning_rate", amount),
        "train.lr_scheduler": word("lr_scheduler", {name: name for name in ("constant", "linear", "cosine")}),
        "train.max_grad_norm": to("max_grad_norm"),
        "train.noise_offset": to("noise_offset"),
        "train.min_snr_gamma": to("min_snr_gamma"),
        "train.dtype": word("mixed_precision", _COMPUTED),
        "sample.sample_every": to("sample_every_n_steps", amount),
        "sample.sampler": choice({"flowmatch": {}}),
    },
    silent=("type", "device", "performance_log_every"),
    datasets=lambda settings: settings.get("datasets", []),
    dataset_settings={
        "folder_path": to("image_dir"),
        "caption_ext": _extension,
        "caption_dropout_rate": to("caption_dropout_rate"),
        "shuffle_tokens": switch(shuffle_caption=True),
        "cache_latents_to_disk": nothing,
        "resolution": to("resolution", sides),
        "num_repeats": to("num_repeats", amount),
        "flip_x": switch(flip_aug=True),
    },
    prompts=_prompts,
    consequences=_consequences,
)
