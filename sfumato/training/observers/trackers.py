"""TensorBoard and Weights & Biases: the figures and previews of a run, where they are asked for."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sfumato import installing
from sfumato.checkpoints import name_trial
from sfumato.config import toml_text
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.errors import UserError, guest_code
from sfumato.training.core.events import Ended, ImageMade, Validated
from sfumato.training.core.observer import Observer
from sfumato.training.core.readings import Reading
from sfumato.training.observers.progress import Averages
from sfumato.training.update.argument_values import require_accepted

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A program that draws the course of runs."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record a step's figures."""
        ...

    def show(self, name: str, path: Path, caption: str, step: int) -> None:
        """Record an image that lies in a file."""
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
    if _tracker_table(config):
        for kind in kinds:
            _check_arguments(config, kind)


def _check_arguments(config: TrackingConfig, kind: str) -> None:
    """Raise UserError for arguments that a tracker does not know, or cannot be started with."""
    given, option = _start_arguments(config, kind), f"--log_tracker_config {config.log_tracker_config}"
    if kind == "wandb":
        import wandb

        require_accepted(wandb.init, given, option, ())
        return
    from torch.utils.tensorboard import SummaryWriter

    require_accepted(SummaryWriter, given, option, ())
    with TemporaryDirectory() as folder, guest_code(f"{option} does not suit TensorBoard"):
        SummaryWriter(**{**given, "log_dir": folder}).close()


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

    def show(self, name: str, path: Path, caption: str, step: int) -> None:
        """Record an image; its caption goes with it as a text of the same name."""
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.add_text(name, caption, step)

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

    def show(self, name: str, path: Path, caption: str, step: int) -> None:
        """Record an image with its caption."""
        import wandb

        self._run.log({name: wandb.Image(str(path), caption=caption)}, step=step)

    def finish(self) -> None:
        """Send what is still held."""
        self._run.finish()


_KINDS: Mapping[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


class Recorder(Observer):
    """Hands figures and previews to trackers under sd-scripts' names."""

    def __init__(self, trackers: Sequence[Tracker], rate_names: Sequence[str], steps_per_epoch: int) -> None:
        self._trackers = list(trackers)
        self._rate_names = rate_names
        self._averages = Averages(steps_per_epoch)
        self._epoch_losses: list[float] = []

    def read(self, reading: Reading) -> None:
        """Record one step, and the epoch it ends."""
        values = {"loss/current": reading.loss, "loss/average": self._averages.add(reading.loss)}
        values |= {**reading.rate_figures(self._rate_names), **reading.figures}
        self._epoch_losses.append(reading.loss)
        if reading.step.ends_epoch:
            values["loss/epoch_average"] = sum(self._epoch_losses) / len(self._epoch_losses)
            self._epoch_losses.clear()
        self._each(lambda tracker: tracker.log(values, reading.step.number))

    def validated(self, event: Validated) -> None:
        """Record what was measured."""
        self._each(lambda tracker: tracker.log(event.figures, event.step))

    def image(self, event: ImageMade) -> None:
        """Record a preview."""
        name = f"sample_{event.index}"
        self._each(lambda tracker: tracker.show(name, event.path, event.prompt, event.step))

    def ended(self, event: Ended) -> None:
        """Let the trackers write what they hold."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            with self._surviving(tracker):
                act(tracker)

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
    if not isinstance(own, dict):
        raise UserError(
            f"--log_tracker_config {config.log_tracker_config}: {kind} is {own!r}; write a table, [{kind}]"
        )
    named = {"name": config.wandb_run_name} if kind == "wandb" and config.wandb_run_name else {}
    return {**named, **_flat(others), **own}


def _tracker_table(config: TrackingConfig) -> dict[str, Any]:
    if not config.log_tracker_config:
        return {}
    try:
        return toml_text.parse(Path(config.log_tracker_config).read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = error.strerror
    except ValueError as error:
        reason = f"it is no TOML: {error}"
    raise UserError(f"--log_tracker_config is {config.log_tracker_config}: {reason}")


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what lies in sections, as if it lay in none."""
    flat = {}
    for key, value in table.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat


def _is_path(name: str, value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_path(name, item) for item in value)
    if not isinstance(value, str):
        return False
    # A file in the current folder has no separator, but it exists.
    return name.endswith(("_dir", "_path", "_file")) or "/" in value or "\\" in value or os.path.exists(value)
