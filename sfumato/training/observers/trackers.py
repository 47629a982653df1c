"""Where a run's figures are recorded: metrics.jsonl always, TensorBoard and wandb where asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sfumato import installing
from sfumato.checkpoints import name_trial
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.errors import UserError
from sfumato.training.core.plan import Step
from sfumato.training.core.readings import Reading
from sfumato.training.observers.progress import Averages

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A program that draws the course of runs."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record a step's figures."""
        ...

    def finish(self) -> None:
        """Write what is still held."""
        ...


def check(config: TrackingConfig) -> None:
    """Raise UserError for trackers that cannot work."""
    kinds = _kinds(config)
    if "tensorboard" in kinds and not config.logging_dir:
        raise UserError(
            f"--log_with {config.log_with} needs --logging_dir; give the folder for TensorBoard's files"
        )
    if "wandb" in kinds and importlib.util.find_spec("wandb") is None:
        raise UserError(f"--log_with {config.log_with} needs wandb: run {installing.command('wandb')}")
    _tracker_table(config)


def start(config: TrackingConfig, default_name: str, settings: Mapping[str, Any]) -> list[Tracker]:
    """Start the trackers that were asked for.

    Args:
        default_name: of the project, where --log_tracker_name gives none.
        settings: the run's public configuration; recorded with --log_config only, and without paths.
    """
    folder = _folder(config)
    recorded = without_paths(settings) if config.log_config else {}
    name = config.log_tracker_name or default_name
    if config.wandb_api_key:
        os.environ["WANDB_API_KEY"] = config.wandb_api_key
    return [_KINDS[kind](folder, name, recorded, _start_arguments(config, kind)) for kind in _kinds(config)]


def try_folder(config: TrackingConfig, default_name: str) -> None:
    """Raise UserError if the folder of the records cannot be made, or be written to."""
    if folder := _folder(config):
        project = config.log_tracker_name or default_name
        remedy = "choose another --logging_dir, --log_prefix or --log_tracker_name"
        name_trial.try_folder(folder / project if "tensorboard" in _kinds(config) else folder, remedy)


def _folder(config: TrackingConfig) -> Path | None:
    """Return where a run that starts now keeps its records."""
    run_folder = f"{config.log_prefix or ''}{time.strftime('%Y%m%d%H%M%S')}"
    return Path(config.logging_dir) / run_folder if config.logging_dir else None


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that tell others nothing about this machine."""
    return {key: value for key, value in settings.items() if not _is_path(key, value)}


class TensorBoard:
    """A `Tracker` that writes TensorBoard's event files."""

    def __init__(
        self, folder: Path | None, name: str, settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        """Write to `folder / name`; `arguments` are SummaryWriter's."""
        from torch.utils.tensorboard import SummaryWriter

        place = {} if folder is None else {"log_dir": str(folder / name)}
        # A chart that is looked at while the run goes on should not be two minutes old.
        self._writer = SummaryWriter(**{**place, "flush_secs": 10, **arguments})
        if settings:
            plain = {key: x if isinstance(x, int | float | str) else str(x) for key, x in settings.items()}
            self._writer.add_hparams(plain, {}, run_name=".")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record a step's figures."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def finish(self) -> None:
        """Close the files."""
        self._writer.close()


class WandB:
    """A `Tracker` that reports to Weights & Biases; without a connection it records for `wandb sync`."""

    def __init__(
        self, folder: Path | None, name: str, settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        """Start a run of project `name`; `arguments` are those of `wandb.init`."""
        import wandb

        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        asked = {"project": name, "dir": folder, "config": dict(settings), **arguments}
        try:
            self._run = wandb.init(**asked)
        except wandb.Error as error:
            logger.warning(
                "Weights & Biases cannot be reached (%s); the run is recorded on this machine, "
                "and `wandb sync` sends it later",
                " ".join(str(error).split()),
            )
            self._run = wandb.init(**{**asked, "mode": "offline"})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record a step's figures."""
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        """Send what is still held."""
        self._run.finish()


_KINDS: Mapping[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


class MetricsFile:
    """An observer that appends one JSON object a step to `metrics.jsonl`, readable while the run goes on."""

    def __init__(self, path: Path, rate_names: Sequence[str], finished: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_until(path, finished)
        # Without a buffer each line is there at once, and none is left over when the disk is full.
        self._file = path.open("wb", buffering=0)
        for line in kept:
            self._file.write(line.encode())
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
            **_rates(self._rate_names, reading),
            **reading.figures,
        }
        self._append(line)

    def record(self, step: Step, figures: Mapping[str, float]) -> None:
        """Append what was measured after a step, in a line of its own."""
        self._append({"step": step.number, "epoch": step.epoch, **figures})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, line: Mapping[str, float]) -> None:
        if self._file.closed:
            return
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            logger.warning("%s: %s; figures are no longer recorded there", self._file.name, error.strerror)
            self._file.close()


class Recorder:
    """An observer that hands each step's figures to trackers under sd-scripts' names."""

    def __init__(self, trackers: Sequence[Tracker], rate_names: Sequence[str], steps_per_epoch: int) -> None:
        self._trackers = list(trackers)
        self._rate_names = rate_names
        self._averages = Averages(steps_per_epoch)
        self._epoch_losses: list[float] = []

    def after(self, step: Step) -> None:
        """Do nothing: a step is recorded when it is read."""

    def read(self, reading: Reading) -> None:
        """Record one step, and the epoch it ends."""
        values = {"loss/current": reading.loss, "loss/average": self._averages.add(reading.loss)}
        values |= {**_rates(self._rate_names, reading), **reading.figures}
        self._epoch_losses.append(reading.loss)
        if reading.step.ends_epoch:
            values["loss/epoch_average"] = sum(self._epoch_losses) / len(self._epoch_losses)
            self._epoch_losses.clear()
        self.record(reading.step, values)

    def record(self, step: Step, figures: Mapping[str, float]) -> None:
        """Record what was measured after a step."""
        for tracker in tuple(self._trackers):
            with self._surviving(tracker):
                tracker.log(figures, step=step.number)

    def close(self) -> None:
        """Let the trackers write what they hold."""
        for tracker in tuple(self._trackers):
            with self._surviving(tracker):
                tracker.finish()

    @contextmanager
    def _surviving(self, tracker: Tracker) -> Iterator[None]:
        """Go on without a tracker that cannot write: its figures are no reason to end a run."""
        try:
            yield
        except OSError as error:
            name, reason = type(tracker).__name__, error.strerror or error
            logger.warning("%s: %s; figures are no longer recorded there", name, reason)
            self._trackers.remove(tracker)


def _kinds(config: TrackingConfig) -> list[str]:
    """Return the trackers that are used; a folder for records alone means TensorBoard."""
    if config.log_with == "all":
        return ["tensorboard", "wandb"]
    if config.log_with:
        return [config.log_with]
    return ["tensorboard"] if config.logging_dir else []


def _start_arguments(config: TrackingConfig, kind: str) -> dict[str, Any]:
    """Return what --log_tracker_config says of one tracker: its section, and whatever is no tracker's."""
    table = _tracker_table(config)
    own, others = table.get(kind, {}), {key: x for key, x in table.items() if key not in _KINDS}
    named = {"name": config.wandb_run_name} if kind == "wandb" and config.wandb_run_name else {}
    return {**named, **_flat(others), **own}


def _tracker_table(config: TrackingConfig) -> dict[str, Any]:
    if not config.log_tracker_config:
        return {}
    try:
        return tomllib.loads(Path(config.log_tracker_config).read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = error.strerror
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = f"it is no TOML: {error}"
    raise UserError(f"--log_tracker_config is {config.log_tracker_config}: {reason}")


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what lies in sections, as if it lay in none."""
    flat = {}
    for key, value in table.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat


def _rates(names: Sequence[str], reading: Reading) -> dict[str, float]:
    """Return each group's rate, and, where the optimizer found a factor d, what it comes to with it."""
    figures = {}
    for name, rate in zip(names, reading.rates, strict=True):
        figures[f"lr/{name}"] = rate.scheduled
        if rate.factor is not None:
            figures[f"lr/d*lr/{name}"] = rate.effective
    return figures


def _is_path(name: str, value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_path(name, item) for item in value)
    if not isinstance(value, str):
        return False
    # A file in the current folder has no separator, but it exists.
    return name.endswith(("_dir", "_path", "_file")) or "/" in value or "\\" in value or os.path.exists(value)


def _lines_until(path: Path, finished: int) -> list[str]:
    """Return the lines of steps up to `finished`: those of an interrupted run's lost steps go.

    A line that a killed process left unfinished goes as well.
    """
    if not finished or not path.exists():
        return []
    whole = [line for line in path.read_text("utf-8").splitlines(True) if line.endswith("\n")]
    return [line for line in whole if json.loads(line)["step"] <= finished]
