"""What every test can rely on: one thread, and logging as it was before."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

# Tiny models run up to ten times faster on one thread when the machine is busy; subprocesses inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    """Undo what a started script does to the process's logging."""
    logger = logging.getLogger("sfumato")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate
    logging.captureWarnings(False)
