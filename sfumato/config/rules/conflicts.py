"""Combinations of settings that contradict each other, found before anything is loaded."""

from collections.abc import Callable
from typing import Any

from sfumato.config.run.run import Run
from sfumato.errors import UserError

_Values = dict[str, Any]


def check_conflicts(run: Run) -> None:
    """Raise UserError for the first combination that cannot work.

    Call it before `imply`, which turns older spellings into newer ones.
    """
    values = run.values()
    asked = {name for name, value in values.items() if value}
    for first, second, reason in _EXCLUSIVE:
        if {first, second} <= asked:
            raise UserError(f"{_shown(first, values)} excludes {_shown(second, values)}: {reason}")
    for names, is_met, needed in _NEEDS:
        if (name := next((name for name in names if name in asked), None)) and not is_met(values):
            raise UserError(f"{_shown(name, values)} needs {needed}")


def _shown(name: str, values: _Values) -> str:
    return f"--{name}" if values[name] is True else f"--{name} {values[name]}"


_PLACES_OF_IMAGES = (
    *("dataset_config", "in_json", "train_data_dir", "reg_data_dir"),
    *("conditioning_data_dir", "mask_dir", "control_dir"),
)
_CACHES = (
    *("cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs"),
    *("cache_text_encoder_outputs_to_disk", "cache_info"),
)

_EXCLUSIVE: tuple[tuple[str, str, str], ...] = (
    ("use_8bit_adam", "use_lion_optimizer", "there is one optimizer"),
    ("use_8bit_adam", "optimizer_type", "it is the older spelling of --optimizer_type AdamW8bit"),
    ("use_lion_optimizer", "optimizer_type", "it is the older spelling of --optimizer_type Lion"),
    ("network_train_unet_only", "network_train_text_encoder_only", "together they leave nothing to train"),
    ("cache_latents", "color_aug", "cached images cannot vary"),
    ("cache_latents", "random_crop", "cached images cannot vary"),
    ("cache_latents_to_disk", "color_aug", "cached images cannot vary"),
    ("cache_latents_to_disk", "random_crop", "cached images cannot vary"),
    ("cache_latents", "face_crop_aug_range", "cached images cannot vary"),
    ("cache_latents_to_disk", "face_crop_aug_range", "cached images cannot vary"),
    ("cpu_offload_checkpointing", "blocks_to_swap", "both move the same memory"),
    ("cpu_offload_checkpointing", "split_mode", "both move the same memory"),
    ("full_fp16", "full_bf16", "there is one dtype"),
    ("fused_backward_pass", "blockwise_fused_optimizers", "one updates weight by weight, one block by block"),
    ("fused_optimizer_groups", "blockwise_fused_optimizers", "there is one way to part the weights"),
    ("cpu_offload_checkpointing", "double_blocks_to_swap", "both move the same memory"),
    ("cpu_offload_checkpointing", "single_blocks_to_swap", "both move the same memory"),
    *(("dataset_class", name, "the class makes all images") for name in _PLACES_OF_IMAGES),
    *(("dataset_class", name, "what a class makes is in no files, and may vary") for name in _CACHES),
    ("dataset_class", "validation_split", "the class alone knows which images it has"),
    ("dataset_class", "debug_dataset", "the report is of files; let the class show its images itself"),
)
"""(option, option, why they cannot go together)."""


def _mixed_precision(*allowed: str) -> Callable[[_Values], bool]:
    return lambda values: values["mixed_precision"] in allowed


def _are_timesteps_in_order(values: _Values) -> bool:
    low, high = values["min_timestep"], values["max_timestep"]
    return low is None or low < (1000 if high is None else high)


def _are_bucket_sizes_in_order(values: _Values) -> bool:
    has_buckets = values.get("enable_bucket", True)  # a tool for buckets has no such switch
    return not has_buckets or values["min_bucket_reso"] <= values["max_bucket_reso"]


def _trains_only_the_end(values: _Values) -> bool:
    given = {text.replace(" ", "") for text in values["network_args"] or ()}
    return bool(values["blocks_to_swap"]) or "train_blocks=single" in given


def _is_swap_compilable(values: _Values) -> bool:
    return values["gradient_checkpointing"] or not (values["blocks_to_swap"] or values["split_mode"])


def _is_swap_fused(values: _Values) -> bool:
    whole = values.get("blockwise_fused_optimizers")  # trainers of whole models alone have it
    return whole is None or whole or values["fused_backward_pass"]


_NEEDS: tuple[tuple[tuple[str, ...], Callable[[_Values], bool], str], ...] = (
    (("full_fp16",), _mixed_precision("fp16"), "--mixed_precision fp16"),
    (("full_bf16",), _mixed_precision("bf16"), "--mixed_precision bf16"),
    (("fp8_base", "fp8_base_unet"), _mixed_precision("fp16", "bf16"), "--mixed_precision bf16 (or fp16)"),
    (("split_mode",), _trains_only_the_end, "--network_args train_blocks=single: the front stays as it is"),
    (("torch_compile",), _is_swap_compilable, "--gradient_checkpointing where blocks are swapped"),
    (
        ("fused_backward_pass", "blockwise_fused_optimizers", "fused_optimizer_groups"),
        _mixed_precision("no", "bf16"),
        "--mixed_precision bf16: with fp16 no gradient is known to be good before all are there",
    ),
    (
        ("blocks_to_swap", "double_blocks_to_swap", "single_blocks_to_swap"),
        _is_swap_fused,
        "--fused_backward_pass or --blockwise_fused_optimizers: weights can change only while they are there",
    ),
    (("adaptive_noise_scale",), lambda values: values["noise_offset"], "--noise_offset"),
    (
        ("v_parameterization",),
        lambda values: values.get("prediction_type") != "epsilon",
        "--prediction_type v_prediction, or none",
    ),
    (
        ("log_with",),
        lambda values: values["logging_dir"] or values["log_with"] == "wandb",
        "--logging_dir: a folder for the records",
    ),
    (("dim_from_weights",), lambda values: values["network_weights"], "--network_weights"),
    (("base_weights_multiplier",), lambda values: values["base_weights"], "--base_weights"),
    (("min_timestep",), _are_timesteps_in_order, "a value below --max_timestep"),
    (("min_bucket_reso",), _are_bucket_sizes_in_order, "a value not above --max_bucket_reso"),
)
"""(options, condition on all values, what is needed)."""
