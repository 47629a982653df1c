"""Logging set-up and the one progress bar of the program."""

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from sfumato.console import printable_lines

REDRAW_S = 0.5
"""Seconds between two drawings of a bar: drawing costs as much as a few kernels."""


def set_up(level: str | None = None, file: str | None = None) -> None:
    """Send the package's messages to standard error (or to `file`), from the first process only.

    Args:
        level: a name of `logging`'s levels; INFO where None.
        file: path of a log file that replaces the console.
    """
    handler = _FileHandler(file) if file else _ConsoleHandler()
    handler.setFormatter(_Printable("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_first_process)
    root = logging.getLogger("sfumato")
    for before in root.handlers:
        if isinstance(before, _FileHandler):  # of an earlier run in this process
            before.close()
    root.handlers[:] = [handler]
    root.setLevel(level or "INFO")
    root.propagate = False
    logging.captureWarnings(True)
    # It complains on every CPU that an optional kernel package is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def progress(
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
    title: str = "",
) -> "tqdm[Any]":
    """Return a progress bar on standard error, silent in all processes but the first."""
    return tqdm(
        items,
        total=total,
        initial=initial,
        unit=unit,
        desc=title,
        disable=not rank_is_zero(),
        dynamic_ncols=True,
        mininterval=REDRAW_S,
    )


class _Printable(logging.Formatter):
    """Shows what a terminal would obey: names and texts of files may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class _ConsoleHandler(logging.Handler):
    """Write above the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.Handler):
    """Append to a file; what finds no room there is shown on the console."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        # Without a buffer each line is there at once, and none is left over when the disk is full.
        self._file = open(path, "ab", buffering=0, opener=_at_once)  # noqa: SIM115 - to the end of the program
        self._is_failing = False

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        try:
            self._file.write(f"{text}\n".encode("utf-8", "backslashreplace"))
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                tqdm.write(f"{self._path}: {error.strerror}; messages are shown here", file=sys.stderr)
            self._is_failing = True
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self._file.close()
        super().close()


def _at_once(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody reads is refused, for which the program would wait for ever."""
    if not hasattr(os, "O_NONBLOCK"):
        return os.open(path, flags, 0o666)
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


def _is_first_process(record: logging.LogRecord) -> bool:
    return rank_is_zero() or record.levelno >= logging.ERROR


def rank_is_zero() -> bool:
    """Return whether this is the first of several processes, or the only one."""
    return os.environ.get("RANK", "0") in ("", "0")


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: `1 image`, `2 images`; see `plural`."""
    return f"{number} {plural(number, one, many)}"


def plural(number: int, one: str, many: str = "") -> str:
    """Return the word for so many: `many`, or `one` with an s, unless there is one of it."""
    return one if number == 1 else many or f"{one}s"
