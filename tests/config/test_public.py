"""What may be shown of a run: no defaults, no secrets, plain types, valid TOML."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from sfumato.config.public import public_values, to_toml
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.file import FileConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.output.hub import HubConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def test_public_values_are_what_differs_without_secrets_and_file_options() -> None:
    run = Run(
        "script",
        "family",
        [
            DatasetConfig(dataset_config=Path("a") / "b.toml", train_batch_size=1),
            NetworkConfig(network_args=("a=1", "b=2"), text_encoder_lr=(1e-5, 0.0)),
            HubConfig(huggingface_token="s3cret", huggingface_repo_id="me/it"),
            TrackingConfig(wandb_api_key="s3cret"),
            FileConfig(config_file="x.toml", strict=True),
        ],
    )
    assert public_values(run) == {
        "dataset_config": str(Path("a") / "b.toml"),
        "network_args": ["a=1", "b=2"],
        "text_encoder_lr": [1e-5, 0.0],
        "huggingface_repo_id": "me/it",
    }


def test_a_value_equal_to_the_default_in_another_number_type_is_left_out() -> None:
    assert public_values(Run("s", "f", [OptimizerConfig(max_grad_norm=1)])) == {}


@pytest.mark.parametrize(
    "value",
    [
        True, False, 0, -7, 10**12, 0.1, 1e-7, 1e22, 2.0, float("inf"), "", "plain", 'quote " and \\ back',
        "tab\tline\nreturn\r", "\x00\x1f\x7f", "käse 写真 😀", ["a=1", "b=[1, 2]"], [1e-4, 2.0], [],
    ],
)  # fmt: skip
def test_toml_reads_back_what_was_written(value: Any) -> None:
    read = tomllib.loads(to_toml({"first": 1, "name": value}))
    assert read == {"first": 1, "name": value}
    assert type(read["name"]) is type(value)


def test_toml_refuses_what_a_flat_file_cannot_hold() -> None:
    with pytest.raises(ValueError, match="dict"):
        to_toml({"name": {"nested": 1}})
