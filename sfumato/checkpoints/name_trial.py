"""Names tried by writing, before hours of work depend on them: what a file system refuses shows at once.

Too long, a character that it does not know, a folder that only looks writable: no rule knows all of that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from sfumato.checkpoints.atomic import temporary_name
from sfumato.errors import UserError

_SHOWN = 60
"""Letters of a name that a message shows."""


def try_file(path: Path, remedy: str, *, in_place: bool = False) -> None:
    """Create a file under its temporary name and remove it: whoever is killed meanwhile leaves no model.

    Args:
        remedy: what to do instead, for the message, e.g. "choose another --output_dir".
        in_place: it will be written under its own name, which is tried; a file that is there stays as it is.

    Raises:
        UserError: the file cannot be written.
    """
    with _explained(path, remedy), _folder(path.parent):
        _require_no_folder(path)
        _try(path if in_place else temporary_name(path))


def try_folder(path: Path, remedy: str) -> None:
    """Create a folder, with a file in it, and remove both; a folder that is there stays."""
    with _explained(path, remedy), _folder(path):
        _try(path / f".sfumato-{os.getpid()}")


def _require_no_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(0, "it is a folder")


def _try(path: Path) -> None:
    if path.exists():
        path.open("ab").close()
        return
    path.open("xb").close()
    path.unlink()


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder that is missing, for the duration of a `with` block."""
    missing = list(takewhile(lambda place: not place.exists(), (path, *path.parents)))
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for place in missing:
            with suppress(OSError, ValueError):
                place.rmdir()


@contextmanager
def _explained(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise UserError(f"{_shown(path)} cannot be written: a file is in the way; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{_shown(path)} cannot be written: {reason}; {remedy}") from error


def _shown(path: Path) -> str:
    """Return a path whose name is shortened in the middle: its end tells which file it is."""
    name = path.name
    if len(name) > _SHOWN:
        name = f"{name[: _SHOWN // 2]}...{name[-_SHOWN // 2 :]} ({len(os.fsencode(name))} bytes)"
    return ascii(str(path.parent / name))[1:-1] if "\0" in name else str(path.parent / name)
