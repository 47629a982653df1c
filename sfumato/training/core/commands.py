"""What somebody may ask of a run while it goes on: by a signal, by the control file, by an observer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from queue import Empty, SimpleQueue

logger = logging.getLogger(__name__)


class Command(Enum):
    """One thing to ask for; the value is the word for it in `sfumato tell`."""

    SAVE = "save"
    SAMPLE = "sample"
    STOP = "stop"


class Commands:
    """What was asked for and is not done yet; signal handlers and other threads may ask, too.

    Attributes:
        impossible: what this run cannot do, and why.
        is_stopping: whether the run was asked to stop.
    """

    def __init__(self, impossible: Mapping[Command, str] | None = None) -> None:
        self.impossible = impossible or {}
        self.is_stopping = False
        # `put` may be called in a signal handler that interrupts another `put`.
        self._asked: SimpleQueue[Command] = SimpleQueue()

    def ask(self, command: Command) -> None:
        """Ask for something; it is done after the step that is under way."""
        self.is_stopping |= command is Command.STOP
        self._asked.put(command)

    def stop(self) -> None:
        """Ask the run to save weights and state after this step, and to end."""
        self.ask(Command.STOP)

    def save(self) -> None:
        """Ask for the weights of this step, and for a state if the run saves states."""
        self.ask(Command.SAVE)

    def sample(self) -> None:
        """Ask for previews of this step."""
        self.ask(Command.SAMPLE)

    def take(self) -> set[Command]:
        """Return what was asked for since the last call; say what of it cannot be done."""
        taken: set[Command] = set()
        try:
            while True:
                taken.add(self._asked.get_nowait())
        except Empty:
            pass
        for command in taken & self.impossible.keys():
            logger.warning("there is nothing to %s: %s", command.value, self.impossible[command])
        return taken - self.impossible.keys()
