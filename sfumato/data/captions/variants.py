"""Every caption that an image may have in a run, where they can be listed: lines, wildcards, dropout.

Shuffled, dropped or slowly added tags make too many of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, cast

from sfumato.data.captions import captions
from sfumato.data.captions.captions import CaptionSettings

MOST = 64
"""Combinations of choices for one image up to which they are listed."""

_LISTED = ("enable_wildcard", "caption_dropout_rate", "caption_dropout_every_n_epochs", "templates")
_ALMOST_ONE = 1 - 2**-53
_NO_CHOICE = random.Random(0)  # nothing is drawn for captions that do not vary


def endless(settings: CaptionSettings) -> list[str]:
    """Return the names of the settings whose captions cannot be listed."""
    return [name for name in settings.varying() if name not in _LISTED]


def listed(caption: str, settings: CaptionSettings) -> list[str] | None:
    """Return the different captions that processing may make of one; None if there are too many.

    Args:
        settings: without any that are `endless`.
    """
    if not settings.varying():
        return [captions.process(caption, settings, _NO_CHOICE, epoch=1)]
    found: dict[str, None] = {}
    epochs = {1, settings.caption_dropout_every_n_epochs or 1}
    waiting: list[tuple[int, tuple[int, ...]]] = [(epoch, ()) for epoch in sorted(epochs)]
    for _ in range(MOST):
        if not waiting:
            break
        epoch, path = waiting.pop()
        walk = _Walk(path)
        found[captions.process(caption, settings, cast(random.Random, walk), epoch=epoch)] = None
        waiting += [(epoch, other) for other in walk.others]
    return None if waiting else list(found)


class _Walk:
    """A generator that decides as it is told, then for the first of everything, and notes what else it could.

    Attributes:
        others: paths that no walk has gone so far.
    """

    def __init__(self, path: tuple[int, ...]) -> None:
        self._path, self._taken = path, ()
        self.others: list[tuple[int, ...]] = []

    def choice(self, options: Sequence[Any]) -> Any:
        return options[self._next(len(options))]

    def random(self) -> float:
        return (0.0, _ALMOST_ONE)[self._next(2)]

    def _next(self, count: int) -> int:
        at = len(self._taken)
        if at < len(self._path):
            index = self._path[at]
        else:
            index = 0
            self.others += [(*self._taken, other) for other in range(1, count)]
        self._taken = (*self._taken, index)
        return index
