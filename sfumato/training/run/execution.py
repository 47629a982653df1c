"""Carry out a run: load, cache, train, save."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from sfumato import seeds
from sfumato.errors import StoppedError
from sfumato.log import counted
from sfumato.training.core.audience import Audience
from sfumato.training.core.commands import Command, Commands
from sfumato.training.core.control import ControlFile
from sfumato.training.core.distributed import LateVote
from sfumato.training.core.events import Ended, Ending, Started
from sfumato.training.core.observer import Observer
from sfumato.training.observers.warnings import WarningLog
from sfumato.training.run.agreement import Agreement
from sfumato.training.run.ending import run_or_save
from sfumato.training.run.interrupt import Interrupt
from sfumato.training.run.loop import Loop
from sfumato.training.run.session import TrainingSession
from sfumato.training.run.watchers import Loaded, Watchers, watchers_for

logger = logging.getLogger(__name__)

_NO_PREVIEWS = "no previews are set up; start the run with --sample_prompts and --sample_every_n_epochs"


def execute(
    session: TrainingSession,
    observers: Sequence[Observer] = (),
    *,
    warnings: WarningLog | None = None,
    signals: bool = False,
    bar: bool = True,
) -> list[Path]:
    """Load, cache, train, save; return what was saved.

    Args:
        warnings: what is told to observers as warnings.
        signals, bar: see `setup.train`.
    """
    loaded, names = _load(session), session.names
    commands = Commands({Command.SAMPLE: _NO_PREVIEWS} if session.previews is None else {})
    watchers = watchers_for(loaded, commands, observers, warnings or WarningLog(), bar=bar)
    control = ControlFile(names.control()) if session.processes.is_first else None
    loop = _loop(loaded, watchers.audience, Agreement(commands, LateVote(session.processes), control))
    interrupt = Interrupt(commands.stop)
    start = names.last(), session.finished, session.plan.num_steps, commands, watchers.record
    with _told(session, loop, watchers), interrupt.listening() if signals else nullcontext():
        watchers.audience.started(Started(*start))
        run_or_save(loop, interrupt, watchers.saver, watchers.guard)
    if control is not None:
        control.clear()
    return list(watchers.saved)


def _load(session: TrainingSession) -> Loaded:
    """Bring the models into memory, and the state if the run goes on from one."""
    parts = session.parts()
    session.fill_caches(parts)
    torch.manual_seed(seeds.derive("initial weights", session.seed))
    trainable = session.method.build(parts, session.precision, session.live_encoders)
    update = session.update(parts, trainable.groups())
    if session.state is not None:
        update.stepping.recall()
        session.state.restore(trainable, update)
        logger.info("resuming after step %d", session.finished)
    return Loaded(session, parts, trainable, update)


def _loop(loaded: Loaded, audience: Audience, agreement: Agreement) -> Loop:
    session = loaded.session
    return Loop(
        loaded.trainable,
        loaded.update,
        session.plan,
        session.batches(),
        session.seed,
        audience,
        session.finished,
        agreement,
    )


@contextmanager
def _told(session: TrainingSession, loop: Loop, watchers: Watchers) -> Iterator[None]:
    """Tell everybody how the run in the block ended, after all that there is to warn of."""
    how: Ending = "failed"
    try:
        yield
        how = "finished" if loop.num_done == session.plan.num_steps else "stopped"
    except (StoppedError, KeyboardInterrupt):
        how = "stopped"
        raise
    finally:
        _name_skipped(session)
        watchers.teller.tell(loop.num_done)
        watchers.audience.ended(Ended(loop.num_done, how, watchers.saved))


def _name_skipped(session: TrainingSession) -> None:
    for data in (session.training_set, session.training_set.validation):
        for path, times in data.skipped.items() if data else ():
            logger.warning("%s could not be decoded and was replaced %s", path, counted(times, "time"))
