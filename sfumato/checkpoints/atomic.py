"""Files and folders that appear under their final names only when they are complete."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import psutil

from sfumato.errors import UserError

_TEMPORARY = re.compile(r"\..+\.(\d+)\.part(?:\.\w+)?")
_ABANDONED_AFTER_S = 3600.0
_FOREIGN_AFTER_S = 86_400.0
_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8)


@contextmanager
def atomic_file(path: Path, size_bytes: int = 0, *, is_flushed: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; when the block succeeds, flush it to disk and rename it to `path`.

    Whatever was at `path` stays untouched if the block fails, the disk fills up or the process is killed.

    Args:
        path: the final name; its folder is made if need be.
        size_bytes: how much will be written, for the message about a full disk.
        is_flushed: whether the file is to outlast a power failure, too, which takes as long as the disk does;
            False for one that is made again if it turns out to be empty or damaged.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder; name a file")
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with temporary.open("wb") as file:
            yield file
            if is_flushed:
                file.flush()
                os.fsync(file.fileno())
        rename(temporary, path)
        if is_flushed:
            sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path, size_bytes) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` whose files are moved there when the block succeeds.

    What else lies at `path` stays. If the block fails or the process is killed, nothing there has changed.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    staged = temporary_name(path)
    try:
        staged.mkdir(parents=True)
        yield staged
        for file in sorted(found for found in staged.rglob("*") if found.is_file()):
            place = path / file.relative_to(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            rename(file, place)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def temporary_name(path: Path, suffix: str = "") -> Path:
    """Return what this process calls a file or folder until it is complete.

    Args:
        suffix: what the name has to end in, for whoever tells the format by it.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.part{suffix}")


def rename(source: Path, target: Path, waits_s: Sequence[float] = _WAITS_S) -> None:
    """Give a file or folder its final name, in place of a file that has it.

    On Windows that fails while somebody has either of them open, a virus scanner for one: it is tried again.

    Args:
        waits_s: how long to wait before each further try.
    """
    try:
        os.replace(source, target)
    except PermissionError:
        if os.name != "nt" or not waits_s:
            raise
        time.sleep(waits_s[0])
        rename(source, target, waits_s[1:])


def clear_unfinished(folder: Path, gone: int | None = None) -> None:
    """Remove the unfinished files and folders in a folder whose processes were killed.

    A disk may be shared with machines whose processes cannot be seen from here, so that what may be theirs
    has to be a day old.

    Args:
        gone: the number of a process that is known to have run on this machine.
    """
    for path, number in _unfinished(folder):
        with suppress(OSError):
            is_old = time.time() - path.lstat().st_mtime > _FOREIGN_AFTER_S
            if (is_old or number == gone) and not psutil.pid_exists(number):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def require_disk_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise UserError unless `folder`, which need not exist yet, has room for `needed_bytes`."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{folder} has {_size(free_bytes)} free, but {purpose} needs {_size(needed_bytes)}; "
            "free some space or choose another folder"
        )


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` outlast a power failure."""
    if os.name == "nt":  # folders cannot be opened there; the rename is journalled anyway
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove what killed processes left of `path`; a living writer touches its file all the time."""
    for leftover in _leftovers(path.parent):
        if leftover.name.startswith(f".{path.name}."):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _ABANDONED_AFTER_S:
                    leftover.unlink()


@lru_cache(maxsize=16)
def _leftovers(folder: Path) -> tuple[Path, ...]:
    """Clear a folder and return what is unfinished still; once, for it may get a hundred thousand files."""
    clear_unfinished(folder)
    return tuple(path for path, _ in _unfinished(folder))


def _unfinished(folder: Path) -> list[tuple[Path, int]]:
    """Return what has a temporary name in a folder, with the number of the process that gave it."""
    with suppress(OSError), os.scandir(folder) as entries:
        matches = [match for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
        return [(folder / match[0], int(match[1])) for match in matches]
    return []


def _explained(error: OSError, path: Path, size_bytes: int) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f" needs {_size(size_bytes)}" if size_bytes else " needs more"
        return UserError(f"{path.parent} is full: {path.name}{needed}; free some space. No file was changed")
    return UserError(f"{path} cannot be written: {error.strerror or error}; check the folder's permissions")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e7 else f"{size_bytes:,} bytes"
