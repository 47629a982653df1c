"""What a save writes: the weights with their record, and a state to resume from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

from sfumato.config.public import public_values
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.training.core.audience import Audience
from sfumato.training.core.plan import Step
from sfumato.training.observers.finite import FiniteGuard
from sfumato.training.observers.saving import Saver
from sfumato.training.run.session import TrainingSession
from sfumato.training.state import metadata
from sfumato.training.state.resume import save_state
from sfumato.training.trainables import Trainable
from sfumato.training.update import schedulers
from sfumato.training.update.optimizer_step import WeightUpdate


def saver_for(
    session: TrainingSession,
    trainable: Trainable,
    update: WeightUpdate,
    guard: FiniteGuard,
    described: Future[dict[str, str]],
    audience: Audience,
) -> Saver:
    """Return what saves a run.

    Args:
        guard: looks at the weights before each save.
        described: the metadata of saved files, which takes a while.
        audience: see `Saver`.
    """
    write = _weights_writer(session, trainable, update, guard, described)
    write_state = _state_writer(session, trainable, update)
    return Saver(session.names, session.keeping, session.plan, write, write_state, audience)


def file_metadata(session: TrainingSession, sha256: Callable[[Path], str]) -> dict[str, str]:
    """Return what saved files tell of the run that is known at its start.

    Args:
        sha256: returns the hash of a file.
    """
    run, optimizer = session.run, session.optimizer
    if not session.method.is_recorded:
        return {}
    rate = run[OptimizerConfig].learning_rate
    return metadata.adapter_metadata(
        run,
        session.family,
        session.training_set,
        session.plan,
        seed=session.seed,
        world=session.processes.world,
        optimizer=optimizer.description,
        scheduler=schedulers.describe(run[ScheduleConfig], optimizer, rate),
        started_at=session.started_at,
        finds_own_rates=optimizer.relative_step,
        sha256=sha256,
    )


def _weights_writer(
    session: TrainingSession,
    trainable: Trainable,
    update: WeightUpdate,
    guard: FiniteGuard,
    described: Future[dict[str, str]],
) -> Callable[[Path, Step], None]:
    at_save = metadata.at_save if session.method.is_recorded else _nothing

    def write(path: Path, step: Step) -> None:
        with update.stepping.evaluating():
            guard.check_weights(step, trainable.tensors())
            trainable.save(path, described.result() | dict(at_save(step)))

    return write


def _nothing(_: Step) -> Mapping[str, str]:
    return {}


def _state_writer(
    session: TrainingSession, trainable: Trainable, update: WeightUpdate
) -> Callable[[Path, Path, Step], None]:
    record = {"seed": session.seed, "options": public_values(session.run)}
    is_same = trainable.file_holds_all and not session.optimizer.is_schedule_free

    def write(folder: Path, saved: Path, step: Step) -> None:
        update.stepping.recall()
        same = saved if is_same else None
        save_state(folder, trainable, update, step.number, step.epoch, record, same)

    return write
