"""Who watches a run: the bar, the records, observers of the user's own, and those who save and measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from sfumato.training.run.run_record import RecordFile, read_in_background, record_of
from sfumato.training.run.saves import saver_for
from sfumato.training.run.session import TrainingSession
from sfumato.training.trainables import Trainable
from sfumato.training.update.optimizer_step import WeightUpdate


@dataclass(frozen=True)
class Loaded:
    """A run whose models are in memory."""

    session: TrainingSession
    parts: Parts
    trainable: Trainable
    update: WeightUpdate


@dataclass(frozen=True)
class Watchers:
    """All observers, and those of them that the run knows by name.

    Attributes:
        saver, record: in the first process only.
    """

    audience: Audience
    guard: FiniteGuard
    saver: Saver | None = None
    record: RunRecord | None = None


def watchers_for(loaded: Loaded, commands: Commands, own: Sequence[Observer], *, bar: bool) -> Watchers:
    """Return who watches, in the order in which they are told: figures are recorded before they are saved.

    Args:
        own: the user's observers.
        bar: whether progress is shown.
    """
    session, audience = loaded.session, Audience()
    guard = FiniteGuard(skips=session.run[OptimizerConfig].on_nonfinite == "skip")
    audience.join(guard)
    if bar:
        images_per_step = session.training_set.num_showings / session.plan.steps_per_epoch
        audience.join(Bar(session.plan, images_per_step, session.finished))
    watchers = Watchers(audience, guard)
    if session.processes.is_first:
        watchers = _of_first_process(loaded, audience, guard, own)
    else:
        audience.join(*own)
    audience.join(*_measuring(loaded, audience, commands))
    return watchers


def _of_first_process(
    loaded: Loaded, audience: Audience, guard: FiniteGuard, own: Sequence[Observer]
) -> Watchers:
    session = loaded.session
    record = record_of(session)
    reading = read_in_background(session, record.files)
    audience.join(RecordFile(session.names.record(), record, reading.hashes), *_recorders(loaded), *own)
    saver = saver_for(session, loaded.trainable, loaded.update, guard, reading.metadata, audience)
    audience.join(saver)
    return Watchers(audience, guard, saver, record)


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
