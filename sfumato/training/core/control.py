"""The way into a run that goes on: a small file of words beside its output. Needs no torch, no signals."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from sfumato.checkpoints.atomic import atomic_file
from sfumato.training.core.commands import Command, Commands

logger = logging.getLogger(__name__)


def write_command(path: Path, command: Command) -> None:
    """Add a command to a control file, which appears whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    waiting = path.read_text("utf-8", "replace") if path.exists() else ""
    with atomic_file(path) as file:
        file.write(f"{waiting}{command.value}\n".encode())


class ControlFile:
    """A control file as its run sees it."""

    def __init__(self, path: Path) -> None:
        """Take over the file; what an earlier run left there is removed."""
        self._path, self._taken = path, path.with_name(f"{path.name}.taken")
        self.clear()

    def clear(self) -> None:
        """Remove what nobody will do any more."""
        for path in (self._path, self._taken):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def pass_on(self, commands: Commands) -> None:
        """Ask for what the file says, and remove it. Where there is none, this is one look at the disk."""
        words = self._take()
        known = {command.value: command for command in Command}
        for word in words:
            if word in known:
                commands.ask(known[word])
        if unknown := [word for word in words if word not in known]:
            logger.warning("%s: unknown: %s; write %s", self._path, ", ".join(unknown), ", ".join(known))

    def _take(self) -> list[str]:
        try:
            if not os.stat(self._path).st_size:  # somebody is about to write it
                return []
            os.replace(self._path, self._taken)  # so that what is written from now on is kept
            words = self._taken.read_text("utf-8", "replace").split()
            self._taken.unlink()
        except FileNotFoundError:
            return []
        except OSError as error:  # Windows: somebody has it open; the next step looks again
            logger.debug("%s cannot be taken yet: %s", self._path, error)
            return []
        return words
