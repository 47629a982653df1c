"""Ctrl-C and SIGTERM end a run after the current step, with everything saved; a second one does at once."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether somebody asked the run to end."""

    def __init__(self) -> None:
        self.name: str | None = None

    @property
    def is_asked(self) -> bool:
        """Whether the run is to end."""
        return self.name is not None

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Take over the signals for the duration of a `with` block."""
        previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        logger.warning("%s: finishing this step, then saving; once more to stop at once", self.name)
