"""Files among pipes, sockets and devices, which may have an image's name and make a reader wait for ever."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

# A pipe would wait for its other end already when it is opened. Windows has neither the flag nor such files.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is of another kind.
    """
    descriptor = os.open(path, _FLAGS)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")  # closed by who asked for it
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file", str(path))
