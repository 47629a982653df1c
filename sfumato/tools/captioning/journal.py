"""What caption files held before they were replaced, so that a whole call can be undone.

A hidden file in the folder of images has one line for each caption file: its path below the folder, and
its bytes as text, or null where there was no file. It belongs to the last call that wrote captions there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config import json_text
from sfumato.errors import UserError

NAME = ".sfumato_captions_before.jsonl"
_CODEC = "utf-8", "surrogateescape"  # any bytes become text, and bytes again


class Journal:
    """Notes what files hold before they are written; nothing is opened before the first of them."""

    def __init__(self, folder: Path, *, is_continued: bool) -> None:
        """Begin a journal, or go on with the one that is there."""
        self._folder, self._mode = folder, "a" if is_continued else "w"
        self._file: IO[str] | None = None

    def note(self, path: Path) -> None:
        """Note what a file holds."""
        if self._file is None:
            self._file = (self._folder / NAME).open(self._mode, encoding="utf-8")
        before = path.read_bytes().decode(*_CODEC) if path.exists() else None
        self._file.write(json.dumps([str(path.relative_to(self._folder)), before]) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._file is not None:
            self._file.close()


def undo(folder: Path) -> tuple[int, int]:
    """Give all files of a folder's journal back what they held; return how many changed, and were removed.

    Raises:
        UserError: there is no journal, or it is damaged.
    """
    journal = folder / NAME
    if not journal.exists():
        raise UserError(f"{folder} has no {NAME}: no captions were written there, or they are undone already")
    num_restored = num_removed = 0
    for path, before in _rows(journal):
        target = folder / path
        if before is not None:
            with atomic_file(target) as file:
                file.write(before.encode(*_CODEC))
            num_restored += 1
        elif target.exists():
            target.unlink()
            num_removed += 1
    journal.unlink()
    return num_restored, num_removed


def _rows(journal: Path) -> list[tuple[str, str | None]]:
    """Return the lines from the last to the first: a file that was written twice ends as it was at first."""
    found: list[tuple[str, str | None]] = []
    lines = journal.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            path, before = json_text.parse(line)
        except (ValueError, TypeError) as error:
            if number == len(lines):  # the process was killed before it wrote the caption
                continue
            raise UserError(f"{journal} is damaged in line {number}; remove it") from error
        if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f"{journal} names {path} in line {number}, which is not in its folder; remove it")
        found.append((path, before))
    return found[::-1]
