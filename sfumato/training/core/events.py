"""What happens in a run, told to whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sfumato.training.core.commands import Commands
from sfumato.training.core.record import RunRecord

Ending = Literal["finished", "stopped", "failed"]
"""How a run ends: after its last step; because somebody asked for it, saved; with an error."""


@dataclass(frozen=True)
class Started:
    """Everything is loaded, and the first step comes next.

    Attributes:
        output: the file or folder that the run saves at its end.
        step: steps that are done already; 0 unless the run goes on from a state.
        num_steps: of the whole run.
        commands: the way to ask the run for something, from any thread.
        record: how the run was started; None in all processes but the first.
    """

    output: Path
    step: int
    num_steps: int
    commands: Commands
    record: RunRecord | None = None


@dataclass(frozen=True)
class ImageMade:
    """A preview was generated and written.

    Attributes:
        step: steps done; 0 before training.
        index: of the prompt, from 0.
    """

    step: int
    index: int
    prompt: str
    path: Path


@dataclass(frozen=True)
class Validated:
    """The loss of the images that are not trained was measured.

    Attributes:
        figures: by the names under which trackers have them.
    """

    step: int
    epoch: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """Weights were written.

    Attributes:
        state: the folder written beside them, from which the run can be resumed, if there is one.
        others: files and folders beside `path` that belong to it: further parts of the model, new words.
    """

    step: int
    path: Path
    state: Path | None = None
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Warned:
    """The program warned of something.

    Attributes:
        step: the last step that was done when it was told.
    """

    step: int
    text: str


@dataclass(frozen=True)
class Ended:
    """The run is over, and nothing is told after this.

    Attributes:
        step: the last step that was done.
        saved: what was saved, in order; what made room since is left out.
    """

    step: int
    how: Ending
    saved: tuple[Path, ...] = ()
