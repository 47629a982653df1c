"""Standard output and error that never end a run: whoever read them may have gone home.

A terminal is closed, the program behind a pipe ends, the disk below a log file fills up: what cannot be
written is left out, and the work goes on. Who prints what a command is for asks afterwards (`failure`).
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
import unicodedata
from typing import Any

STANDARD = ("stdout", "stderr")
_WAIT_S = 1.0
"""How long a pipe that does not block is given to take more before a text is left out."""
_PAUSE_S = 0.05
_MOST_SHOWN, _SHOWN_IN_FRONT, _SHOWN_BEHIND = 2000, 1000, 500
_BLANK = "Zs"
"""Unicode's category of blanks of every width, of which Python calls one alone printable."""


def keep_alive() -> None:
    """Let writing to the interpreter's own standard streams fail without a word, here and in what it imports.

    Streams that others have put in their place stay; a second call changes nothing.
    """
    _fill_gaps()
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - to the end
    for name in STANDARD:
        stream = getattr(sys, name)
        if stream is None:  # it was closed before the start
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - to the end
        elif stream is not getattr(sys, f"__{name}__"):
            continue
        if isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _lasting(stream, f"<{name}>"))


def printable(text: str) -> str:
    """Return `text` on one line that any console and file takes: file names may hold anything but a slash."""
    return text if text.isprintable() else "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """Return the lines of a text, each `printable`: whoever wrote a file could move a terminal's cursor."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(text: str) -> str:
    """Leave out the middle of a text that fills screens; what is wrong stands in front, the remedy behind."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_SHOWN_IN_FRONT]} ... {text[-_SHOWN_BEHIND:]}"


def _shown(char: str) -> str:
    is_shown = char.isprintable() or unicodedata.category(char) == _BLANK
    return char if is_shown else char.encode("unicode_escape").decode()


def failure(stream: object) -> str:
    """Return why a text did not reach its place; empty if all did, or its reader had seen enough."""
    raw = stream.raw if isinstance(stream, _Lasting) else None
    error = raw.error if raw else None
    return "" if error is None or isinstance(error, BrokenPipeError) else error.strerror or str(error)


def _fill_gaps() -> None:
    """Open nothing in the place of standard streams that were closed before the start.

    The next file would get the number of one of them, and what libraries say would be written into it.
    """
    for number in (0, 1, 2):
        if not _is_open(number):
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _lasting(stream: io.TextIOWrapper, name: str) -> _Lasting:
    stream.flush()
    below: Any = stream.buffer
    return _Lasting(_Raw(getattr(below, "raw", below), name), stream)  # without buffer with `python -u`


class _Raw(io.RawIOBase):
    """The bytes below a stream: what cannot be written counts as written.

    There is no `io.BufferedWriter` above it: that fails where a signal's handler writes within a write.

    Attributes:
        error: why the last text that was left out was.
    """

    def __init__(self, stream: io.RawIOBase, name: str) -> None:
        self.name = name
        self.error: OSError | None = None
        self._stream = stream

    def write(self, data: Any, /) -> int:
        """Write all that the stream takes, and leave out the rest."""
        try:
            left = memoryview(data)
            while left:
                left = left[self._write_some(left) :]
        except OSError as error:
            self.error = error
        except ValueError:  # it was closed
            self.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
        return memoryview(data).nbytes

    def _write_some(self, data: memoryview) -> int:
        until = time.monotonic() + _WAIT_S
        while (written := self._stream.write(data)) is None:
            if time.monotonic() > until:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            time.sleep(_PAUSE_S)
        return written

    def writable(self) -> bool:
        """Return True: it takes everything."""
        return True

    def fileno(self) -> int:
        """Return the stream's own number."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Tell whether somebody looks at it."""
        return not self._stream.closed and self._stream.isatty()


class _Lasting(io.TextIOWrapper):
    """A standard stream that nobody can close."""

    def __init__(self, raw: _Raw, like: io.TextIOWrapper) -> None:
        super().__init__(
            raw,  # type: ignore[arg-type] # as Python's own streams with `python -u`
            like.encoding,
            # A character that a terminal does not have is no reason to stop either.
            "backslashreplace" if like.errors == "strict" else like.errors,
            line_buffering=like.line_buffering,
            write_through=like.write_through,
        )
        self.raw = raw
        self._replaced = like  # which would close what is below when it is no longer needed

    def close(self) -> None:
        """Write what is held."""
        self.flush()
