"""The warnings of the program, told to whoever watches a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from sfumato.training.core.events import Started, Warned
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Step

PACKAGE = "sfumato"


class WarningLog(logging.Handler):
    """Keeps what the package warns of, in any thread, until somebody takes it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: SimpleQueue[str] = SimpleQueue()

    @contextmanager
    def listening(self) -> Iterator[WarningLog]:
        """Listen for the duration of a `with` block; loggers and other handlers stay as they are."""
        logger = logging.getLogger(PACKAGE)
        logger.addHandler(self)
        try:
            yield self
        finally:
            logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning; print it where nobody has set up logging, as it would be without this."""
        self._texts.put(record.getMessage())
        others = [*logging.getLogger(PACKAGE).handlers, *logging.getLogger().handlers]
        if others == [self] and logging.lastResort is not None:
            logging.lastResort.handle(record)

    def take(self) -> list[str]:
        """Return the warnings of up to now, each once; what comes meanwhile is for the next call."""
        return [self._texts.get() for _ in range(self._texts.qsize())]


class WarningTeller(Observer):
    """Tells the audience what was warned of, between steps and in the thread that trains."""

    def __init__(self, log: WarningLog, audience: Observer) -> None:
        self._log, self._audience = log, audience

    def started(self, event: Started) -> None:
        """Tell what was warned of before the first step."""
        self.tell(event.step)

    def after(self, step: Step) -> None:
        """Tell what was warned of since the last step."""
        self.tell(step.number)

    def tell(self, step: int) -> None:
        """Tell what was warned of since the last call."""
        for text in self._log.take():
            self._audience.warned(Warned(step, text))
