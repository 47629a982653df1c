"""What a program makes of an adapter file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a file's tensors, by their keys."""


@dataclass(frozen=True)
class Verdict:
    """What a program makes of a file.

    Attributes:
        loaded: keys that take effect.
        refusal: why nothing is loaded and an error raised; "" if the file is taken.
        remarks: what acts otherwise there than here.
    """

    loaded: frozenset[str] = frozenset()
    refusal: str = ""
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "none, it refuses the file" if self.refusal else str(len(self.loaded))


Program = Callable[[Shapes], Verdict | None]
"""Judges a file; None where nothing is known of such files."""
