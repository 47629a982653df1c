"""What a save writes: the weights with their record, and a state to resume from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch import Tensor

from sfumato.config.public import public_values
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.training.core.audience import Audience
from sfumato.training.core.plan import Step
from sfumato.training.observers.finite import FiniteGuard
from sfumato.training.observers.saving import Saver
from sfumato.training.run.session import TrainingSession
from sfumato.training.state import metadata
from sfumato.training.state.resume import Content, state_content
from sfumato.training.trainables import Trainable
from sfumato.training.update import schedulers
from sfumato.training.update.optimizer_step import WeightUpdate

logger = logging.getLogger(__name__)


WORTH_COPYING_BYTES = 64 << 20
"""Below this a save is over before the loop notices; above it, a copy is written while the run goes on."""
SHARE_OF_MEMORY = 4
"""A copy takes at most one part in so many of the RAM that is free."""


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
    writer = Writer(session, trainable, update, guard, described)
    saver = Saver(session.names, session.keeping, session.plan, writer, audience, session.method.beside)
    guard.settle = saver.settle
    return saver


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


@dataclass(frozen=True)
class Writer:
    """Writes one save: weights, then perhaps a state."""

    session: TrainingSession
    trainable: Trainable
    update: WeightUpdate
    guard: FiniteGuard
    described: Future[dict[str, str]]

    def write(self, path: Path, state: Path | None, step: Step) -> None:
        """Write everything as it is now."""
        with self.update.stepping.evaluating():
            self.guard.check_weights(step, self.trainable.tensors())
            self.trainable.save(path, self._metadata(step), step)
        logger.info("saved %s", path)
        if state is not None:
            is_same = self.trainable.file_holds_all and not self.session.optimizer.is_schedule_free
            self._state(step).write(state, path if is_same else None)
            logger.info("saved %s", state)

    def copy(self, path: Path, state: Path | None, step: Step) -> Callable[[], None] | None:
        """Return what writes everything as it is now, later and in any thread.

        None where that cannot be, is not worth it or finds no room.
        """
        if not self._is_worth_copying(has_state=state is not None):
            return None
        with self.update.stepping.evaluating():
            self.guard.check_weights(step, self.trainable.tensors())
            weights = self.trainable.snapshot(self._metadata(step))
        if weights is None:
            return None
        content = None if state is None else self._state(step).copied()

        def write() -> None:
            weights(path)
            logger.info("saved %s", path)
            if state is not None and content is not None:
                content.write(state)
                logger.info("saved %s", state)

        return write

    def _metadata(self, step: Step) -> dict[str, str]:
        at_save = metadata.at_save(step) if self.session.method.is_recorded else {}
        return {**self.described.result(), **at_save}

    def _state(self, step: Step) -> Content:
        self.update.stepping.recall()
        told = {"options": public_values(self.session.run), "data": self.session.data_record}
        record = {"seed": self.session.seed, **told}
        return state_content(self.trainable, self.update, step.number, step.epoch, record)

    def _is_worth_copying(self, *, has_state: bool) -> bool:
        weights = sum(tensor.nbytes for _, tensor in self.trainable.tensors())
        remembered = (
            value.nbytes
            for values in self.update.stepping.optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        )
        num_bytes = 2 * weights + sum(remembered) if has_state else weights
        room = psutil.virtual_memory().available // SHARE_OF_MEMORY
        return WORTH_COPYING_BYTES <= num_bytes <= room
