"""Presets of kohya_ss: nearly the options themselves, with the form's own words for a few.

Its form takes every 0, empty text and switch that is off as 'not given', and so is it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    switch,
    to,
)

_KIND = "LoRA_type"
_CONVOLUTIONS = ("conv_dim", "conv_alpha")
_BLOCKS = (
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"),
    *("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"),
    *("rank_dropout", "module_dropout"),
)
_OF_FLUX = (
    *("img_attn_dim", "img_mlp_dim", "img_mod_dim", "single_dim", "txt_attn_dim", "txt_mlp_dim"),
    *("txt_mod_dim", "single_mod_dim", "in_dims", "train_double_block_indices"),
    *("train_single_block_indices", "split_qkv", "train_t5xxl", "rank_dropout", "module_dropout"),
)
_OF_LYCORIS = (
    *(*_CONVOLUTIONS, "use_tucker", "rank_dropout", "module_dropout", "rank_dropout_scale", "train_norm"),
    *("dora_wd", "bypass_mode", "use_scalar", "factor", "decompose_both", "use_cp"),
)


@dataclass(frozen=True)
class _Network:
    """A type of adapter.

    Attributes:
        arguments: settings that become arguments of the module.
        fixed: arguments that the type itself is.
    """

    module: str
    arguments: tuple[str, ...]
    fixed: tuple[str, ...] = ()


_NETWORKS = {
    "Standard": _Network("networks.lora", _BLOCKS),
    "Kohya LoCon": _Network("networks.lora", (*_CONVOLUTIONS, *_BLOCKS)),
    "LoRA-FA": _Network("networks.lora_fa", _BLOCKS),
    "Kohya DyLoRA": _Network("networks.dylora", (*_CONVOLUTIONS, "unit", *_BLOCKS)),
    "Flux1": _Network("networks.lora_flux", _OF_FLUX),
    **{
        f"LyCORIS/{name}": _Network("lycoris.kohya", _OF_LYCORIS, (f"algo={algorithm}",))
        for name, algorithm in {
            "LoCon": "locon",
            "LoHa": "loha",
            "LoKr": "lokr",
            "GLoRA": "glora",
            "Native Fine-Tuning": "full",
        }.items()
    },
}
_PRESET = "LyCORIS_preset"


def _goal(settings: Settings) -> Goal:
    if is_on(settings.get("sd3_checkbox")):
        raise UserError(
            "the preset trains Stable Diffusion 3, which is not taken over; see sfumato train sd3"
        )
    family = "sd"
    if is_on(settings.get("flux1_checkbox")) or str(settings.get(_KIND)).startswith("Flux1"):
        family = "flux"
    elif is_on(settings.get("sdxl")):
        family = "sdxl"
    if _KIND not in settings:
        return Goal(family, "full")
    if settings[_KIND] not in _NETWORKS:
        raise UserError(
            f"{_KIND} is {settings[_KIND]}, which is not taken over; known: {', '.join(_NETWORKS)}"
        )
    return Goal(family)


def _consequences(settings: Settings) -> Values:
    return {**_length(settings), **_warmup(settings), **_network(settings)}


def _length(settings: Settings) -> Values:
    if "epoch" in settings and not {"max_train_steps", "max_train_epochs"} & settings.keys():
        return {"max_train_epochs": settings["epoch"]}
    return {}


def _warmup(settings: Settings) -> Values:
    if settings.get("lr_scheduler") == "constant":  # its form drops the warmup then
        return {"lr_warmup_steps": 0}
    if "lr_warmup" in settings and "lr_warmup_steps" not in settings:
        return {"lr_warmup_steps": amount(settings["lr_warmup"]) / 100}
    return {}


def _network(settings: Settings) -> Values:
    if _KIND not in settings:
        return {}
    network = _NETWORKS[settings[_KIND]]
    given = [f"{name}={settings[name]}" for name in network.arguments if name in settings]
    preset = [f"preset={settings[_PRESET]}"] if network.fixed and _PRESET in settings else []
    arguments = [*network.fixed, *preset, *given]
    return {"network_module": network.module} | ({"network_args": arguments} if arguments else {})


def _words(value: Any) -> list[str]:
    return value if isinstance(value, list) else str(value).replace('"', "").split()


def _prompts(settings: Settings) -> Sequence[str]:
    return str(settings.get("sample_prompts", "")).splitlines()


_READ_TOGETHER = (
    *("epoch", "lr_warmup", _KIND, _PRESET, "unit", *_BLOCKS, *_OF_FLUX, *_OF_LYCORIS),
    *("sdxl", "flux1_checkbox", "sample_prompts", "noise_offset_type", "model_list", "dynamo_backend"),
)

PROGRAM = Program(
    name="kohya_ss",
    marks=(_KIND, "train_data_dir", "pretrained_model_name_or_path"),
    goal=_goal,
    settings={
        **dict.fromkeys(_READ_TOGETHER, nothing),
        "optimizer": to("optimizer_type"),
        "max_resolution": to("resolution"),
        "optimizer_args": to("optimizer_args", _words),
        "lr_scheduler_args": to("lr_scheduler_args", _words),
        "xformers": choice(
            {"xformers": {"xformers": True}, "true": {"xformers": True}, "sdpa": {"sdpa": True}, "none": {}}
        ),
        "sdxl_no_half_vae": switch(no_half_vae=True),
        "use_wandb": switch(log_with="wandb"),
        "train_blocks": choice({"all": {}}),
        "sdxl_cache_text_encoder_outputs": switch(cache_text_encoder_outputs=True),
        "flux1_cache_text_encoder_outputs": switch(cache_text_encoder_outputs=True),
        "flux1_cache_text_encoder_outputs_to_disk": switch(cache_text_encoder_outputs_to_disk=True),
    },
    silent=(
        *("gpu_ids", "multi_gpu", "num_", "main_process_port", "dynamo_", "extra_accelerate_launch_args"),
    ),
    prompts=_prompts,
    shares_names=True,
    zero_is_nothing=True,
    consequences=_consequences,
)
