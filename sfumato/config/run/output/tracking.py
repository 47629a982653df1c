"""Where the course of a run is recorded."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.rule import given, idle, implies, needs


@dataclass(frozen=True)
class TrackingConfig:
    """Trackers."""

    logging_dir: str | None = None
    """Folder for the records; given alone it turns TensorBoard on."""

    log_with: Literal["tensorboard", "wandb", "all"] | None = None
    """Which tracker is used; tensorboard where only `logging_dir` is given."""

    log_prefix: str | None = None
    """Text in front of the folder that each run gets, which is named by date and time."""

    log_tracker_name: str | None = None
    """Name of the project in the tracker."""

    log_tracker_config: str | None = None
    """TOML file of arguments for starting the tracker."""

    log_config: bool = False
    """Record the configuration as well, without paths and secrets."""

    wandb_run_name: str | None = None
    """Name of the run at Weights & Biases."""

    wandb_api_key: str | None = field(default=None, repr=False)
    """Key of Weights & Biases. Better given in the environment as WANDB_API_KEY."""


_ANY = (given("logging_dir"), given("log_with"))

RULES = (
    needs(
        ["log_with"],
        given("logging_dir"),
        given("log_with", "wandb"),
        reason="a folder for the records",
    ),
    implies("logging_dir", {"log_with": "tensorboard"}, without=(given("log_with"),)),
    idle(["log_prefix", "log_tracker_name", "log_tracker_config", "log_config"], *_ANY),
    idle(["wandb_run_name", "wandb_api_key"], given("log_with", "wandb", "all")),
)
"""What these options mean to others."""
