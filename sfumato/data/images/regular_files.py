"""Files among pipes, sockets and devices, which may have an image's name and make a reader wait for ever."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

# A pipe would wait for its other end already when it is opened. Windows has neither the flag nor such files.
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is of another kind.
    """
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 (closed by who asked for it)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | _WITHOUT_WAITING)
