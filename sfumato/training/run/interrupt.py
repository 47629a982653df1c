"""Signals end a run after the current step, with everything saved; a second one may do so at once.

Ctrl-C and SIGTERM are somebody's wish. The end of the terminal (SIGHUP; SIGBREAK where a window of Windows is
closed) comes by itself, from several sides and any number of times, and not at all under `nohup`.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

WISHES = (signal.SIGINT, signal.SIGTERM)
FAREWELLS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGBREAK") if hasattr(signal, name))

REPEAT_S = 3.0
"""A launcher passes on the signal that its processes got from the terminal too; that is no second wish."""


class Interrupt:
    """Whether a signal asked the run to end."""

    def __init__(self, ask: Callable[[], object] = lambda: None) -> None:
        """Take what is called with the first signal, within its handler."""
        self._ask = ask
        self.signal: signal.Signals | None = None
        self._asked_at = 0.0

    @property
    def is_asked(self) -> bool:
        """Whether the run is to end."""
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Take over the signals for the duration of a `with` block, in the main thread only."""
        ignored = [number for number in FAREWELLS if signal.getsignal(number) == signal.SIG_IGN]
        numbers = [number for number in (*WISHES, *FAREWELLS) if number not in ignored]
        previous = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._asked_at = signal.Signals(number), now
            self._ask()
            logger.warning(
                "%s: finishing this step, then saving; again later to stop at once", self.signal.name
            )
        elif number in WISHES and now - self._asked_at > REPEAT_S:
            raise KeyboardInterrupt
