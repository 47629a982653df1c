"""What is wrong with the data: said once, gathered for reports, or fatal where the user wants strictness."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from sfumato.console import printable
from sfumato.errors import UserError

MOST_FILES = 1000
"""Files that are remembered of one complaint; in a folder of a million, the rest is like them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Complaint:
    """One line for a person.

    Attributes:
        files: what it is about, as far as they are not too many.
        kind: what it is about in a word or two.
    """

    message: str
    files: tuple[str, ...] = ()
    kind: str = "data"


@dataclass
class Complaints:
    """Warnings about the data, or errors where the user asked for strictness.

    Attributes:
        broken: (path, reason) of each image that is left out.
        warnings: everything else that was said, in order.
        notes: what is worth knowing, though nothing is wrong.
    """

    strict: bool = False
    broken: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[Complaint] = field(default_factory=list)
    notes: list[Complaint] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)

    def warn(self, message: str, files: Sequence[str] = (), kind: str = "data") -> None:
        """Log `message`, or raise it."""
        if self._say(message):
            self.warnings.append(Complaint(printable(message), tuple(files[:MOST_FILES]), kind))

    def note(self, message: str, files: Sequence[str] = (), kind: str = "data") -> None:
        """Log what the user should know, but need not change."""
        if message not in self._said:
            self._said.add(message)
            logger.info(printable(message))
            self.notes.append(Complaint(printable(message), tuple(files[:MOST_FILES]), kind))

    def leave_out(self, path: str, reason: str) -> None:
        """Note an image that cannot be used, and name it; once, though several data sets may have it."""
        if self._say(f"{path} is left out: {reason}"):
            self.broken.append((path, reason))

    def _say(self, message: str) -> bool:
        """Log a message or raise it; return whether it is new."""
        if self.strict:
            raise UserError(printable(message))
        is_new = message not in self._said
        if is_new:
            self._said.add(message)
            logger.warning(printable(message))
        return is_new
