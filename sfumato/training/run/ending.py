"""How a run ends: after its last step, or earlier, all saved, with a line that says how to go on."""

from __future__ import annotations

import logging

from sfumato.data.batches.loader import is_worker_death
from sfumato.errors import StoppedError, UserError
from sfumato.training.observers.finite import FiniteGuard
from sfumato.training.observers.saving import Saver
from sfumato.training.run.interrupt import Interrupt
from sfumato.training.run.loop import Loop

logger = logging.getLogger(__name__)


def run_or_save(loop: Loop, interrupt: Interrupt, saver: Saver | None, guard: FiniteGuard) -> None:
    """Run the loop; save where it is if it ends early.

    Args:
        saver: None in all processes but the first.

    Raises:
        StoppedError: a signal ended the run.
        UserError: a process that loads images died.
    """
    if loop.finished == loop.plan.num_steps:
        # The run was killed after its last step's state and before its last file.
        if saver is not None:
            saver.after(loop.plan.step(loop.finished))
        return
    death: str | None = None
    try:
        if loop.run().is_last:
            return
    except (RuntimeError, OSError, EOFError) as error:
        # A signal to the whole group reaches what starts and feeds the loading processes too.
        if not interrupt.is_asked and not is_worker_death(error):
            raise
        death = str(error).strip().removeprefix("DataLoader worker ").rstrip(".")
    how = _save(loop, saver, guard)
    if interrupt.signal is not None:
        raise StoppedError(f"{interrupt.signal.name} ended the run: {how}", interrupt.signal)
    if death is not None:
        raise UserError(
            f"a process that loads images died ({death}), most often for lack of memory; "
            f"lower --max_data_loader_n_workers: {how}"
        )
    logger.info("the run was asked to stop: %s", how)


def _save(loop: Loop, saver: Saver | None, guard: FiniteGuard) -> str:
    """Save the last whole step; say what was saved."""
    if saver is None or loop.reached is None:
        return guard.last_save
    folder = saver.save_interrupted(loop.reached)
    return f"step {loop.reached.number} is saved; to go on, start it again with --resume {folder}"
