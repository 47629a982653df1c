"""Files and folders that appear under their final names only when they are complete."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from sfumato.errors import UserError

_ABANDONED_AFTER_S = 3600.0


@contextmanager
def atomic_file(path: Path, size_bytes: int = 0) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; when the block succeeds, flush it to disk and rename it to `path`.

    Whatever was at `path` stays untouched if the block fails, the disk fills up or the process is killed.

    Args:
        path: the final name; its folder is made if need be.
        size_bytes: how much will be written, for the message about a full disk.

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
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
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
            os.replace(file, place)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; choose another folder"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """Return what this process calls a file or folder until it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


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
        if leftover.match(f"{_glob_escape('.' + path.name)}.*.part"):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _ABANDONED_AFTER_S:
                    leftover.unlink()


@lru_cache(maxsize=16)
def _leftovers(folder: Path) -> tuple[Path, ...]:
    """Return temporary files in a folder; once, for a folder may get a hundred thousand files."""
    with suppress(OSError), os.scandir(folder) as entries:
        return tuple(folder / e.name for e in entries if e.name[:1] == "." and e.name.endswith(".part"))
    return ()


def _glob_escape(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _explained(error: OSError, path: Path, size_bytes: int) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = f" needs {_size(size_bytes)}" if size_bytes else " needs more"
        return UserError(f"{path.parent} is full: {path.name}{needed}; free some space. No file was changed")
    return UserError(f"{path} cannot be written: {error.strerror or error}; check the folder's permissions")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e7 else f"{size_bytes:,} bytes"
