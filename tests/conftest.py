"""What every test can rely on: one thread, and logging as if no program had been started before."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

# Tiny models run up to ten times faster on one thread when the machine is busy; subprocesses inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _logging_is_as_at_first() -> Iterator[None]:
    """Undo what a started script does to the process's logging, in fixtures of wider scope too."""
    _reset_logging()
    yield
    _reset_logging()


def _reset_logging() -> None:
    logger = logging.getLogger("sfumato")
    logger.handlers[:] = []
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logging.captureWarnings(False)
