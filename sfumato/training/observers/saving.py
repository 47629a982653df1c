"""When weights are saved during a run, under which names, and which older files make room."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sfumato.config.run.output.saving import FOLDER_FORMATS, SavingConfig
from sfumato.errors import UserError
from sfumato.training.core.audience import Audience
from sfumato.training.core.commands import Command
from sfumato.training.core.events import Ended, Saved
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


class SaveWriter(Protocol):
    """Writes weights to a path, and a state to a folder unless that is None."""

    def write(self, path: Path, state: Path | None, step: Step) -> None:
        """Write everything as it is now."""
        ...

    def copy(self, path: Path, state: Path | None, step: Step) -> Callable[[], None] | None:
        """Return what writes everything as it is now, later and in any thread; None where it cannot wait."""
        ...


@dataclass
class Saver(Observer):
    """Saves on the rhythm's beats, at the end and when asked to; in the first process only.

    A large save is copied and written by a thread while the run goes on. It is announced, and older files
    make room for it, when it is complete; one that fails ends the run. The run waits for it before the next
    save, and at its end.

    Attributes:
        audience: catches up before each save, so that the figures of what is saved are checked and
            recorded, and is told of it afterwards.
        beside: returns the files and folders that may be written beside a saved file.
        kept: weights that were saved and not removed again, in order.
    """

    names: Names
    keeping: Keeping
    plan: Plan
    writer: SaveWriter
    audience: Audience = field(default_factory=Audience)
    beside: Callable[[Path], Sequence[Path]] = lambda _: ()
    kept: list[Path] = field(default_factory=list)
    _thread: ThreadPoolExecutor | None = None
    _written: Future[None] | None = None
    _announce: Callable[[], None] = lambda: None

    def after(self, step: Step) -> None:
        """Save if this step asks for it, then remove what became stale."""
        if self.is_settled:
            self.settle()
        weights, states = self.keeping.weights, self.keeping.states
        if weights.saves_step(step):
            stale = weights.stale_step(step.number), states.stale_step(step.number)
            self._save(self.names.step, step.number, step, stale)
        if weights.saves_epoch(step, self.plan):
            stale = weights.stale_epoch(step.epoch), states.stale_epoch(step.epoch)
            self._save(self.names.epoch, step.epoch, step, stale)
        if step.is_last:
            self._save_now(self.names.last(), step, self.keeping.saves_last_state)

    def asked(self, command: Command, step: Step) -> None:
        """Save this step, unless that is done."""
        weights = self.keeping.weights
        is_done = step.is_last or weights.saves_step(step) or weights.saves_epoch(step, self.plan)
        if command is Command.SAVE and not is_done:
            self._save(self.names.step, step.number, step)

    def save_interrupted(self, step: Step) -> Path:
        """Save weights and state now, because the run ends early; return the state's folder."""
        path = self.names.step(step.number)
        self._save_now(path, step, with_state=True)
        return self.names.state(path)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is being written."""
        return self._written is None or self._written.done()

    def settle(self) -> None:
        """Wait for the save that is being written, if there is one, and announce it.

        Raises:
            UserError: it could not be written.
        """
        if self._written is not None:
            written, self._written = self._written, None
            written.result()
            self._announce()

    def ended(self, event: Ended) -> None:
        """Wait for what is being written, whatever ended the run."""
        try:
            self.settle()
        except UserError as error:
            logger.error(error)
        if self._thread is not None:
            self._thread.shutdown()

    def _save(
        self,
        name: Callable[[int], Path],
        number: int,
        step: Step,
        stale: tuple[int | None, int | None] = (None, None),
    ) -> None:
        """Save under the name of a number; weights and state of the stale numbers go when that is done."""
        path = name(number)
        state = self.names.state(path) if self.keeping.saves_states else None
        self._get_ready()
        write = self.writer.copy(path, state, step)

        def announce() -> None:
            self._tell(path, state, step)
            self._remove(*stale, name)

        if write is None:
            self.writer.write(path, state, step)
            announce()
        else:
            self._thread = self._thread or ThreadPoolExecutor(1, "saving")
            self._written, self._announce = self._thread.submit(write), announce

    def _save_now(self, path: Path, step: Step, with_state: bool) -> None:
        state = self.names.state(path) if with_state else None
        self._get_ready()
        self.writer.write(path, state, step)
        self._tell(path, state, step)

    def _get_ready(self) -> None:
        self.settle()
        self.audience.catch_up()

    def _tell(self, path: Path, state: Path | None, step: Step) -> None:
        self.kept = [*(kept for kept in self.kept if kept != path), path]
        others = tuple(other for other in self.beside(path) if other.exists())
        self.audience.saved(Saved(step.number, path, state, others))

    def _remove(self, weights: int | None, state: int | None, name: Callable[[int], Path]) -> None:
        paths = [] if weights is None else [name(weights), *self.beside(name(weights))]
        paths += [] if state is None else [self.names.state(name(state))]
        for path in (path for path in paths if path.exists()):
            _remove(path)
        self.kept = [kept for kept in self.kept if kept not in paths]


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:  # on Windows, somebody has it open
        logger.warning("%s cannot be removed (%s); the run goes on", path, error.strerror)
    else:
        logger.info("removed %s", path)
