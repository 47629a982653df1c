"""Who watches a run: the bar, the records, observers of the user's own, and those who save and measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sfumato.config.public import public_values, to_toml
from sfumato.config.run.data.validation import ValidationConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.models.interface.parts import Parts
from sfumato.training.core.audience import Audience
from sfumato.training.core.commands import Commands
from sfumato.training.core.observer import Observer
from sfumato.training.core.record import RunRecord
from sfumato.training.observers import trackers
from sfumato.training.observers.finite import FiniteGuard
from sfumato.training.observers.metrics import MetricsFile
from sfumato.training.observers.preview import PreviewObserver, Previews
from sfumato.training.observers.progress import Averages, Bar
from sfumato.training.observers.saving import Saver
from sfumato.training.observers.validation import ValidationObserver, rhythm_for
from sfumato.training.observers.warnings import WarningLog, WarningTeller
from sfumato.training.run.hub.results import hub_observers
from sfumato.training.run.run_record import RecordFile, read_in_background, record_of
from sfumato.training.run.saves import saver_for
from sfumato.training.run.session import TrainingSession
from sfumato.training.state import leftovers
from sfumato.training.trainables import Trainable
from sfumato.training.update.optimizer_step import WeightUpdate


@dataclass(frozen=True)
class Loaded:
    """A run whose models are in memory."""

    session: TrainingSession
    parts: Parts
    trainable: Trainable
    update: WeightUpdate


class Writers(NamedTuple):
    """What the first process alone does: it notes how the run was started, records it and saves it."""

    record: RunRecord
    recorders: Sequence[Observer]
    saver: Saver


@dataclass(frozen=True)
class Watchers:
    """All observers, and those of them that the run knows by name.

    Attributes:
        teller: tells the others of warnings.
        writers: in the first process only.
    """

    audience: Audience
    guard: FiniteGuard
    teller: WarningTeller
    writers: Writers | None

    @property
    def record(self) -> RunRecord | None:
        """How the run was started, in the first process."""
        return self.writers.record if self.writers else None

    @property
    def saver(self) -> Saver | None:
        """Who saves, in the first process."""
        return self.writers.saver if self.writers else None

    @property
    def saved(self) -> tuple[Path, ...]:
        """The weights that were saved up to now, without those that made room."""
        return tuple(self.writers.saver.kept) if self.writers else ()


def watchers_for(
    loaded: Loaded, commands: Commands, own: Sequence[Observer], warnings: WarningLog, *, bar: bool
) -> Watchers:
    """Return who watches, in the order in which they are told: figures are recorded before they are saved.

    Args:
        own: the user's observers.
        bar: whether progress is shown.
    """
    session, audience = loaded.session, Audience()
    guard = FiniteGuard(skips=session.run[OptimizerConfig].on_nonfinite == "skip")
    writers = _writers(loaded, audience, guard) if session.processes.is_first else None
    teller = WarningTeller(warnings, audience)
    audience.join(guard)
    if bar:
        audience.join(_bar(session))
    if writers is not None:
        audience.join(*writers.recorders)
    audience.join(*own)
    if writers is not None:
        audience.join(writers.saver, *hub_observers(session))
    audience.join(*_measuring(loaded, audience, commands), teller)
    return Watchers(audience, guard, teller, writers)


def _bar(session: TrainingSession) -> Bar:
    images_per_step = session.training_set.num_showings / session.plan.steps_per_epoch
    return Bar(session.plan, images_per_step, session.finished)


def _writers(loaded: Loaded, audience: Audience, guard: FiniteGuard) -> Writers:
    session = loaded.session
    leftovers.clear(session.names)
    record = record_of(session)
    reading = read_in_background(session, record.files)
    kept = RecordFile(session.names.record(), record, reading)
    saver = saver_for(session, loaded.trainable, loaded.update, guard, reading.metadata, audience)
    return Writers(record, [kept, *_recorders(loaded)], saver)


def _recorders(loaded: Loaded) -> Iterator[Observer]:
    session = loaded.session
    settings, names = public_values(session.run), session.names
    names.settings().write_text(to_toml(settings), "utf-8")
    rates = [group.name for group in loaded.trainable.groups()]
    yield MetricsFile(names.metrics(), rates, session.finished)
    started = trackers.start(session.run[TrackingConfig], session.method.project, settings)
    yield trackers.Recorder(started, rates, session.plan.steps_per_epoch)


def _measuring(loaded: Loaded, audience: Audience, commands: Commands) -> Iterator[Observer]:
    """Yield what looks at the weights as they would be saved."""
    validation = _validation(loaded, audience, commands)
    if validation is not None:
        yield validation
    if loaded.session.previews is not None:
        yield _previews(loaded.session.previews, loaded, audience, commands)


def _validation(loaded: Loaded, audience: Audience, commands: Commands) -> ValidationObserver | None:
    """Return what measures the loss of the validation images, if there are any."""
    session = loaded.session
    held_back = session.training_set.validation
    if held_back is None:
        return None
    return ValidationObserver(
        loaded.trainable,
        held_back,
        session.loader(held_back),
        rhythm_for(session.run[ValidationConfig]),
        session.processes,
        loaded.trainable.network,
        Averages(session.plan.steps_per_epoch),
        loaded.update.stepping.evaluating,
        audience,
        should_stop=lambda: commands.is_stopping,
    )


def _previews(previews: Previews, loaded: Loaded, audience: Audience, commands: Commands) -> PreviewObserver:
    session = loaded.session
    return previews.observer(
        loaded.parts,
        loaded.trainable.network,
        session.names,
        session.precision,
        session.processes,
        evaluating=loaded.update.stepping.evaluating,
        audience=audience,
        should_stop=lambda: commands.is_stopping,
    )
