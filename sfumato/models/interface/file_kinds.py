"""What tells one kind of model file from others: the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FileKind:
    """One kind of file.

    Attributes:
        name: what the program calls it.
        description: what a message calls it: "it seems to be {description}".
        parts: each of these occurs in at least one tensor's name, at its start where it begins with `^`.
        width: (tensor, last dimension) that tells models of the same names apart.
        without: none of these occurs in any tensor's name, likewise.
    """

    name: str
    description: str
    parts: tuple[str, ...]
    width: tuple[str, int] | None = None
    without: tuple[str, ...] = ()

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether a file with these tensors is of this kind."""
        if self.width and shapes.get(self.width[0], (0,))[-1:] != (self.width[1],):
            return False
        is_other = any(_occurs(part, shapes) for part in self.without)
        return not is_other and all(_occurs(part, shapes) for part in self.parts)


def _occurs(part: str, names: Iterable[str]) -> bool:
    if part.startswith("^"):
        return any(name.startswith(part[1:]) for name in names)
    return any(part in name for name in names)
