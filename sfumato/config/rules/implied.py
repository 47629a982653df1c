"""Settings that follow from other settings."""

from dataclasses import replace
from typing import Any

from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.loader import LoaderConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.model.whole_model import WholeModelConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig

_SWITCHES: tuple[tuple[type, str, str, Any], ...] = (
    (CachingConfig, "cache_latents_to_disk", "cache_latents", True),
    (CachingConfig, "cache_text_encoder_outputs_to_disk", "cache_text_encoder_outputs", True),
    (PrecisionConfig, "fp8_base_unet", "fp8_base", True),
    (MemoryConfig, "cpu_offload_checkpointing", "gradient_checkpointing", True),
    (OptimizerConfig, "use_8bit_adam", "optimizer_type", "AdamW8bit"),
    (OptimizerConfig, "use_lion_optimizer", "optimizer_type", "Lion"),
)
"""(section, option that is on, option that follows, its value)."""


def imply(run: Run) -> tuple[Run, list[str]]:
    """Return the run with all that follows from its settings, and a message for each thing that changed."""
    messages: list[str] = []
    for section, cause, name, value in _SWITCHES:
        if section in run and getattr(run[section], cause) and getattr(run[section], name) != value:
            run = _with(run, section, **{name: value})
            messages.append(f"--{cause} sets {name}" + ("" if value is True else f" to {value}"))
    for rule in (
        _tracker,
        _older_spelling,
        _data_folders,
        _loader,
        _older_check,
        _older_swap,
        _swap,
        _shares,
    ):
        run = rule(run, messages)
    return run, messages


def _tracker(run: Run, messages: list[str]) -> Run:
    tracking = run[TrackingConfig]
    if not tracking.logging_dir or tracking.log_with:
        return run
    messages.append("--logging_dir sets log_with to tensorboard")
    return _with(run, TrackingConfig, log_with="tensorboard")


def _older_spelling(run: Run, messages: list[str]) -> Run:
    extension = run[CaptionConfig].caption_extention
    if not extension:
        return run
    messages.append(f"--caption_extention is read as caption_extension: {extension}")
    return _with(run, CaptionConfig, caption_extension=extension, caption_extention=None)


def _data_folders(run: Run, messages: list[str]) -> Run:
    data = run[DatasetConfig]
    replaced = [name for name in ("train_data_dir", "reg_data_dir", "in_json") if getattr(data, name)]
    if data.dataset_config is None or not replaced:
        return run
    messages.append(f"--dataset_config replaces {' and '.join(replaced)}")
    return _with(run, DatasetConfig, **dict.fromkeys(replaced))


def _loader(run: Run, messages: list[str]) -> Run:
    loader = run[LoaderConfig]
    if loader.max_data_loader_n_workers or not loader.persistent_data_loader_workers:
        return run
    messages.append("--max_data_loader_n_workers 0 leaves persistent_data_loader_workers nothing to keep")
    return _with(run, LoaderConfig, persistent_data_loader_workers=False)


def _older_check(run: Run, messages: list[str]) -> Run:
    if not run[WholeModelConfig].skip_latents_validity_check:
        return run
    messages.append("--skip_latents_validity_check is read as skip_cache_check")
    run = _with(run, WholeModelConfig, skip_latents_validity_check=False)
    return _with(run, CachingConfig, skip_cache_check=True)


def _older_swap(run: Run, messages: list[str]) -> Run:
    whole = run[WholeModelConfig]
    num = (whole.double_blocks_to_swap or 0) + (whole.single_blocks_to_swap or 0) // 2
    if not (whole.double_blocks_to_swap or whole.single_blocks_to_swap):
        return run
    older = dict.fromkeys(("double_blocks_to_swap", "single_blocks_to_swap"))
    run = _with(run, WholeModelConfig, **older)
    if run[MemoryConfig].blocks_to_swap:
        messages.append("--blocks_to_swap replaces double_blocks_to_swap and single_blocks_to_swap")
        return run
    messages.append(f"--double_blocks_to_swap and --single_blocks_to_swap are read as blocks_to_swap: {num}")
    return _with(run, MemoryConfig, blocks_to_swap=num)


def _shares(run: Run, messages: list[str]) -> Run:
    if not (run[OptimizerConfig].fused_backward_pass and run[WholeModelConfig].fused_optimizer_groups):
        return run
    messages.append("--fused_backward_pass updates weight by weight, so fused_optimizer_groups is left out")
    return _with(run, WholeModelConfig, fused_optimizer_groups=None)


def _swap(run: Run, messages: list[str]) -> Run:
    if not (run[MemoryConfig].split_mode and run[MemoryConfig].blocks_to_swap):
        return run
    messages.append("--blocks_to_swap says how much travels, so split_mode is left out")
    return _with(run, MemoryConfig, split_mode=False)


def _with(run: Run, section: type, **values: Any) -> Run:
    return run.with_sections(replace(run[section], **values))
