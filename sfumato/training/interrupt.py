"""Ctrl-C and SIGTERM end a run after the current step, with everything saved; a second one does at once."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)

REPEAT_S = 3.0
"""A launcher passes on the signal that its processes got from the terminal too; that is no second wish."""


class Interrupt:
    """Whether somebody asked the run to end."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked_at = 0.0

    @property
    def is_asked(self) -> bool:
        """Whether the run is to end."""
        return self.signal is not None

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
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._asked_at = signal.Signals(number), now
            logger.warning(
                "%s: finishing this step, then saving; again later to stop at once", self.signal.name
            )
        elif now - self._asked_at > REPEAT_S:
            raise KeyboardInterrupt
