"""What follows from settings, and which of them contradict each other."""

from pathlib import Path
from typing import Any

import pytest

from sfumato.cli.scripts import script_named
from sfumato.config.rules import evaluation
from sfumato.config.rules.tables import rules_of
from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.loader import LoaderConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.errors import UserError


def imply(run: Run) -> tuple[Run, list[str]]:
    return evaluation.imply(run, rules_of(run))


def check_conflicts(run: Run) -> None:
    evaluation.check_conflicts(run, rules_of(run))


def _run(*sections: Any) -> Run:
    script = script_named("flux_train_network")
    return Run(script.name, script.family, [section() for section in script.sections]).with_sections(
        *sections
    )


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        (CachingConfig(cache_latents_to_disk=True), "cache_latents", True),
        (CachingConfig(cache_text_encoder_outputs_to_disk=True), "cache_text_encoder_outputs", True),
        (PrecisionConfig(fp8_base_unet=True), "fp8_base", True),
        (OptimizerConfig(use_8bit_adam=True), "optimizer_type", "AdamW8bit"),
        (OptimizerConfig(use_lion_optimizer=True), "optimizer_type", "Lion"),
        (TrackingConfig(logging_dir="logs"), "log_with", "tensorboard"),
        (CaptionConfig(caption_extention=".txt"), "caption_extension", ".txt"),
        (DatasetConfig(dataset_config=Path("d.toml"), train_data_dir="x"), "train_data_dir", None),
        (
            LoaderConfig(max_data_loader_n_workers=0, persistent_data_loader_workers=True),
            "persistent_data_loader_workers",
            False,
        ),
    ],
)
def test_an_implied_setting_is_set_and_said_once(given: Any, name: str, value: object) -> None:
    run, messages = imply(_run(given))
    assert run.values()[name] == value
    assert len(messages) == 1
    assert name in messages[0]
    assert imply(run)[1] == []


def test_defaults_imply_nothing_and_do_not_conflict() -> None:
    run = _run()
    check_conflicts(run)
    assert imply(run)[1] == []
    assert imply(Run("other", "family", []))[1] == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"full_fp16": True}, "mixed_precision fp16"),
        ({"full_bf16": True, "mixed_precision": "fp16"}, "mixed_precision bf16"),
        ({"fp8_base": True}, "mixed_precision"),
        ({"fp8_base_unet": True}, "mixed_precision"),
        ({"use_8bit_adam": True, "optimizer_type": "Prodigy"}, "optimizer_type"),
        ({"use_8bit_adam": True, "use_lion_optimizer": True}, "use_lion_optimizer"),
        ({"network_train_unet_only": True, "network_train_text_encoder_only": True}, "nothing to train"),
        ({"cache_latents": True, "color_aug": True}, "color_aug"),
        ({"cache_latents_to_disk": True, "random_crop": True}, "random_crop"),
        ({"cache_latents": True, "face_crop_aug_range": "2,4"}, "face_crop_aug_range"),
        ({"log_with": "tensorboard"}, "logging_dir"),
        ({"adaptive_noise_scale": 0.1}, "noise_offset"),
        ({"fused_backward_pass": True, "mixed_precision": "fp16"}, "mixed_precision bf16"),
        ({"dim_from_weights": True}, "network_weights"),
        ({"min_timestep": 500, "max_timestep": 500}, "max_timestep"),
        ({"min_bucket_reso": 512, "max_bucket_reso": 256, "enable_bucket": True}, "512 .*max_bucket_reso"),
        ({"cpu_offload_checkpointing": True, "blocks_to_swap": 4}, "blocks_to_swap"),
    ],
)
def test_a_contradiction_is_one_line_that_names_both_sides(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        check_conflicts(_with(values))
    assert next(iter(values)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"full_bf16": True, "mixed_precision": "bf16"},
        {"fp8_base": True, "mixed_precision": "bf16"},
        {"fused_backward_pass": True, "optimizer_type": "adafactor"},
        {"log_with": "tensorboard", "logging_dir": "logs"},
        {"max_timestep": 500},
        {"min_bucket_reso": 2048},
    ],
)
def test_what_goes_together_passes(values: dict[str, Any]) -> None:
    check_conflicts(_with(values))


def _with(values: dict[str, Any]) -> Run:
    run = _run()
    sections = [
        type(section)(**{name: value for name, value in values.items() if hasattr(section, name)})
        for section in run
    ]
    return run.with_sections(*sections)
