"""A line of the file of prompts for previews."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """What a preview shows; what is None is left to the run.

    Attributes:
        scale: of guidance.
    """

    text: str
    negative: Any = None
    width: Any = None
    height: Any = None
    steps: Any = None
    scale: Any = None
    seed: Any = None

    def line(self) -> str:
        """Return it as a line."""
        given = {
            "n": self.negative,
            "w": self.width,
            "h": self.height,
            "s": self.steps,
            "l": self.scale,
            "d": self.seed,
        }
        options = [f"--{name} {value}" for name, value in given.items() if value not in (None, "")]
        return " ".join([" ".join(self.text.split()), *options])
