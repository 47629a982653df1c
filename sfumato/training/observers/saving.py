"""When weights are saved during a run, under which names, and which older files make room."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sfumato.config.run.output.saving import FOLDER_FORMATS, SavingConfig
from sfumato.errors import UserError
from sfumato.training.core.audience import Audience
from sfumato.training.core.commands import Command
from sfumato.training.core.events import Saved
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Plan, Step
from sfumato.training.core.run_files import CONTROL, METRICS, RECORD, SETTINGS

logger = logging.getLogger(__name__)

DEFAULT_NAMES = {"epoch": "epoch", "step": "at", "last": "last"}


@dataclass(frozen=True)
class Names:
    """File names of one run, as sd-scripts gives them."""

    folder: Path
    name: str | None
    suffix: str

    def epoch(self, number: int) -> Path:
        """Return the file saved after an epoch."""
        return self._path(f"{self.name or DEFAULT_NAMES['epoch']}-{number:06d}")

    def step(self, number: int) -> Path:
        """Return the file saved after a step."""
        return self._path(f"{self.name or DEFAULT_NAMES['step']}-step{number:08d}")

    def last(self) -> Path:
        """Return the file saved at the end."""
        return self._path(self.name or DEFAULT_NAMES["last"])

    def state(self, saved: Path) -> Path:
        """Return the folder of the state that belongs to a saved file."""
        return saved.with_name(f"{saved.name.removesuffix(self.suffix)}-state")

    def settings(self) -> Path:
        """Return the file that holds the run's options."""
        return self._beside(SETTINGS)

    def metrics(self) -> Path:
        """Return the file that holds each step's figures, and all events."""
        return self._beside(METRICS)

    def record(self) -> Path:
        """Return the file that says how the run was started."""
        return self._beside(RECORD)

    def control(self) -> Path:
        """Return the file by which the run can be asked for something while it goes on."""
        return self._beside(CONTROL)

    def _beside(self, ending: str) -> Path:
        return self.folder / f"{self.last().name.removesuffix(self.suffix)}.{ending}"

    def _path(self, stem: str) -> Path:
        return self.folder / f"{stem}{self.suffix}"


def names_for(config: SavingConfig) -> Names:
    """Return the names of a run.

    Raises:
        UserError: no output folder was given.
    """
    if not config.output_dir:
        raise UserError("--output_dir is missing; give the folder to save to")
    kind = config.save_model_as or "safetensors"
    suffix = "" if kind in FOLDER_FORMATS else f".{kind}"
    return Names(Path(config.output_dir), config.output_name, suffix)


@dataclass(frozen=True)
class Rhythm:
    """How often a run saves and how much it keeps; None means never, and all.

    Attributes:
        keep_epochs: with every save the file of this many epochs ago is removed.
        keep_steps: with every save the files older than this many steps are removed.
    """

    every_epochs: int | None
    every_steps: int | None
    keep_epochs: int | None = None
    keep_steps: int | None = None

    def saves_epoch(self, step: Step, plan: Plan) -> bool:
        """Whether this step ends an epoch that is saved; the last epoch is saved as the end of the run."""
        is_beat = bool(self.every_epochs) and step.ends_epoch and step.epoch % (self.every_epochs or 1) == 0
        return is_beat and step.epoch < plan.num_epochs

    def saves_step(self, step: Step) -> bool:
        """Whether the file of this step is saved."""
        return bool(self.every_steps) and step.number % (self.every_steps or 1) == 0

    def stale_epoch(self, epoch: int) -> int | None:
        """Return the epoch whose file goes when `epoch` is saved."""
        stale = epoch - (self.every_epochs or 0) * (self.keep_epochs or 0)
        return stale if self.keep_epochs and stale > 0 else None

    def stale_step(self, number: int) -> int | None:
        """Return the step whose file goes when step `number` is saved."""
        if not self.keep_steps or not self.every_steps:
            return None
        stale = (number - self.keep_steps - 1) // self.every_steps * self.every_steps
        return stale if stale > 0 else None

    def count(self, plan: Plan) -> int:
        """Return how many files lie on the disk at the same time at most."""
        epochs = (plan.num_epochs - 1) // self.every_epochs if self.every_epochs else 0
        steps = plan.num_steps // self.every_steps if self.every_steps else 0
        if self.keep_epochs:
            epochs = min(epochs, self.keep_epochs + 1)
        if self.keep_steps and self.every_steps:
            steps = min(steps, self.keep_steps // self.every_steps + 2)
        return epochs + steps + 1


@dataclass(frozen=True)
class Keeping:
    """What a run saves: weights, and states beside them if it is to be resumed.

    Attributes:
        states: rhythm of states; as often as weights, but what is kept may differ.
        saves_states: whether states go with every save.
        saves_last_state: whether a state is saved at the end.
    """

    weights: Rhythm
    states: Rhythm
    saves_states: bool = False
    saves_last_state: bool = False

    def num_bytes(self, plan: Plan, weights: int, state: int) -> int:
        """Return the disk space that is needed, given the bytes of one file and of one state."""
        num_states = self.states.count(plan) if self.saves_states else int(self.saves_last_state)
        return self.weights.count(plan) * weights + num_states * state


def keeping_for(config: SavingConfig, plan: Plan) -> Keeping:
    """Return what a run saves, and when."""
    every = config.save_every_n_epochs
    if config.save_n_epoch_ratio:
        every = max(1, plan.num_epochs // config.save_n_epoch_ratio)
    epochs, steps = config.save_last_n_epochs, config.save_last_n_steps
    state_epochs, state_steps = config.save_last_n_epochs_state, config.save_last_n_steps_state
    return Keeping(
        Rhythm(every, config.save_every_n_steps, epochs, steps),
        Rhythm(every, config.save_every_n_steps, state_epochs or epochs, state_steps or steps),
        config.save_state,
        config.save_state or config.save_state_on_train_end,
    )


@dataclass
class Saver(Observer):
    """Saves on the rhythm's beats, at the end and when asked to; in the first process only.

    Attributes:
        save: writes the weights as they are now to a path.
        save_state: writes a state as it is now to a folder, given the file that was just saved.
        audience: catches up before each save, so that the figures of what is saved are checked and
            recorded, and is told of it afterwards.
        kept: weights that were saved and not removed again, in order.
    """

    names: Names
    keeping: Keeping
    plan: Plan
    save: Callable[[Path, Step], None]
    save_state: Callable[[Path, Path, Step], None]
    audience: Audience = field(default_factory=Audience)
    kept: list[Path] = field(default_factory=list)

    def after(self, step: Step) -> None:
        """Save if this step asks for it, then remove what became stale."""
        weights, states = self.keeping.weights, self.keeping.states
        if weights.saves_step(step):
            self._save(self.names.step(step.number), step, self.keeping.saves_states)
            stale = weights.stale_step(step.number), states.stale_step(step.number)
            self._remove(*stale, self.names.step)
        if weights.saves_epoch(step, self.plan):
            self._save(self.names.epoch(step.epoch), step, self.keeping.saves_states)
            stale = weights.stale_epoch(step.epoch), states.stale_epoch(step.epoch)
            self._remove(*stale, self.names.epoch)
        if step.is_last:
            self._save(self.names.last(), step, self.keeping.saves_last_state)

    def asked(self, command: Command, step: Step) -> None:
        """Save this step, unless that is done."""
        weights = self.keeping.weights
        is_done = step.is_last or weights.saves_step(step) or weights.saves_epoch(step, self.plan)
        if command is Command.SAVE and not is_done:
            self._save(self.names.step(step.number), step, self.keeping.saves_states)

    def save_interrupted(self, step: Step) -> Path:
        """Save weights and state now, because the run ends early; return the state's folder."""
        path = self.names.step(step.number)
        self._save(path, step, with_state=True)
        return self.names.state(path)

    def _save(self, path: Path, step: Step, with_state: bool) -> None:
        self.audience.catch_up()
        self.save(path, step)
        logger.info("saved %s", path)
        state = self.names.state(path) if with_state else None
        if state is not None:
            self.save_state(state, path, step)
            logger.info("saved %s", state)
        self.kept = [*(kept for kept in self.kept if kept != path), path]
        self.audience.saved(Saved(step.number, path, state))

    def _remove(self, weights: int | None, state: int | None, name: Callable[[int], Path]) -> None:
        paths = [] if weights is None else [name(weights)]
        paths += [] if state is None else [self.names.state(name(state))]
        for path in (path for path in paths if path.exists()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            logger.info("removed %s", path)
        self.kept = [kept for kept in self.kept if kept not in paths]
