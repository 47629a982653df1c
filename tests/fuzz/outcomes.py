"""What a reader may do with any input: succeed, or refuse it with UserError; soon in both cases."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sfumato.errors import UserError

MOST_S = 20
"""What one input may take of the processor. Most take thousandths of a second."""

T = TypeVar("T")


@dataclass
class Tally:
    """What a reader was given so far.

    Attributes:
        slowest_s: the processor's time for the slowest input.
    """

    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0


TRIED: dict[str, Tally] = {}
"""By reader; the summary of a long run shows it."""


def outcome(reader: str, read: Callable[[], T]) -> T | None:
    """Return what a reader makes of an input, None if it refuses it as it should."""
    tally = TRIED.setdefault(reader, Tally())
    tally.inputs += 1
    start_s = time.process_time()
    try:
        with _no_hang():
            return read()
    except UserError:
        tally.refused += 1
        return None
    finally:
        tally.slowest_s = max(tally.slowest_s, time.process_time() - start_s)


class HangError(BaseException):
    """An input took too long; no reader may catch it, so it is no Exception."""


@contextmanager
def _no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError(f"an input takes more than {MOST_S} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
