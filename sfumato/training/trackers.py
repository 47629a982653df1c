"""Where a run's figures are recorded: metrics.jsonl always, TensorBoard and wandb where asked for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from sfumato.config.tracking import TrackingConfig
from sfumato.errors import UserError
from sfumato.training.plan import Step
from sfumato.training.progress import Averages, Reading


def check(config: TrackingConfig) -> None:
    """Raise UserError for trackers that cannot work."""
    if config.log_with in ("tensorboard", "all") and not config.logging_dir:
        raise UserError(
            f"--log_with {config.log_with} needs --logging_dir; give the folder for TensorBoard's files"
        )


def start(config: TrackingConfig, default_name: str, settings: Mapping[str, Any]) -> list[Any]:
    """Start the trackers that were asked for.

    Args:
        settings: the run's public configuration; recorded with --log_config only.
    """
    kind = config.log_with or ("tensorboard" if config.logging_dir else None)
    if kind is None:
        return []
    folder = Path(config.logging_dir or ".") / f"{config.log_prefix or ''}{time.strftime('%Y%m%d%H%M%S')}"
    accelerator = Accelerator(log_with=kind, project_dir=folder)
    recorded = {key: _plain(value) for key, value in settings.items()} if config.log_config else None
    accelerator.init_trackers(config.log_tracker_name or default_name, recorded, _init_arguments(config))
    return accelerator.trackers


class MetricsFile:
    """An observer that appends one JSON object a step to `metrics.jsonl`, readable while the run goes on."""

    def __init__(self, path: Path, rate_names: Sequence[str], finished: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_until(path, finished)
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(kept)
        self._rate_names = rate_names

    def after(self, step: Step) -> None:
        """Do nothing: a step is recorded when it is read."""

    def read(self, reading: Reading) -> None:
        """Append one step."""
        line = {
            "step": reading.step.number,
            "epoch": reading.step.epoch,
            "loss": reading.loss,
            "grad_norm": reading.grad_norm,
            **{f"lr/{name}": rate for name, rate in zip(self._rate_names, reading.rates, strict=True)},
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Recorder:
    """An observer that hands each step's figures to trackers under sd-scripts' names."""

    def __init__(self, trackers: Sequence[Any], rate_names: Sequence[str], steps_per_epoch: int) -> None:
        self._trackers = trackers
        self._rate_names = rate_names
        self._averages = Averages(steps_per_epoch)
        self._epoch_losses: list[float] = []

    def after(self, step: Step) -> None:
        """Do nothing: a step is recorded when it is read."""

    def read(self, reading: Reading) -> None:
        """Record one step, and the epoch it ends."""
        values = {"loss/current": reading.loss, "loss/average": self._averages.add(reading.loss)}
        values |= {f"lr/{name}": rate for name, rate in zip(self._rate_names, reading.rates, strict=True)}
        self._epoch_losses.append(reading.loss)
        if reading.step.ends_epoch:
            values["loss/epoch_average"] = sum(self._epoch_losses) / len(self._epoch_losses)
            self._epoch_losses.clear()
        for tracker in self._trackers:
            tracker.log(values, step=reading.step.number)

    def close(self) -> None:
        """Let the trackers write what they hold."""
        for tracker in self._trackers:
            tracker.finish()


def _init_arguments(config: TrackingConfig) -> dict[str, Any]:
    if config.wandb_api_key:
        os.environ.setdefault("WANDB_API_KEY", config.wandb_api_key)
    return {"wandb": {"name": config.wandb_run_name}} if config.wandb_run_name else {}


def _lines_until(path: Path, finished: int) -> list[str]:
    """Return the lines of steps up to `finished`: those of an interrupted run's lost steps go."""
    if not finished or not path.exists():
        return []
    return [line for line in path.read_text("utf-8").splitlines(True) if json.loads(line)["step"] <= finished]


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)
