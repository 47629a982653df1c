"""`metrics.jsonl`: every step's figures and every event of a run, one JSON object a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config import json_text
from sfumato.log import counted
from sfumato.training.core.events import Ended, ImageMade, Saved, Started, Validated, Warned
from sfumato.training.core.observer import Observer
from sfumato.training.core.readings import Reading

logger = logging.getLogger(__name__)


class MetricsFile(Observer):
    """Appends a line for each step and event, readable while the run goes on.

    Every line has a `step`. Those of steps and measurements hold figures; all others have an `event`.
    """

    def __init__(self, path: Path, rate_names: Sequence[str], finished: int) -> None:
        """Keep what an interrupted run wrote up to step `finished`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_until(path, finished)
        if kept:
            with atomic_file(path) as file:
                file.writelines(kept)
        # Without a buffer each line is there at once, and none is left over when the disk is full.
        self._file = path.open("ab" if kept else "wb", buffering=0)
        self._rate_names = rate_names

    def started(self, event: Started) -> None:
        """Append where the run begins and where it will end."""
        self._append_event("started", event.step, num_steps=event.num_steps, output=str(event.output))

    def read(self, reading: Reading) -> None:
        """Append one step."""
        line = {
            "step": reading.step.number,
            "epoch": reading.step.epoch,
            "loss": reading.loss,
            "grad_norm": reading.grad_norm,
            **reading.rate_figures(self._rate_names),
            **reading.figures,
        }
        self._append(line)

    def validated(self, event: Validated) -> None:
        """Append what was measured."""
        self._append({"step": event.step, "epoch": event.epoch, **event.figures})

    def image(self, event: ImageMade) -> None:
        """Append a preview."""
        self._append_event("image", event.step, index=event.index, prompt=event.prompt, path=str(event.path))

    def saved(self, event: Saved) -> None:
        """Append a save."""
        state = {} if event.state is None else {"state": str(event.state)}
        self._append_event("saved", event.step, path=str(event.path), **state)

    def warned(self, event: Warned) -> None:
        """Append a warning."""
        self._append_event("warning", event.step, text=event.text)

    def ended(self, event: Ended) -> None:
        """Append how the run ended, and close the file."""
        self._append_event("ended", event.step, how=event.how)
        self._file.close()

    def _append_event(self, name: str, step: int, **details: Any) -> None:
        self._append({"event": name, "step": step, **details})

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._file.closed:
            return
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            logger.warning("%s: %s; figures are no longer recorded there", self._file.name, error.strerror)
            self._file.close()


def _lines_until(path: Path, finished: int) -> list[bytes]:
    """Return the lines of steps up to `finished`: those of an interrupted run's lost steps go.

    A line that a killed process left unfinished goes as well, and so does one that a power failure damaged.
    """
    if not finished or not path.exists():
        return []
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    steps = [_step_of(line) for line in whole]
    if num_damaged := steps.count(None):
        logger.warning("%s: %s left out, which cannot be read", path, counted(num_damaged, "line"))
    return [line for line, step in zip(whole, steps, strict=True) if step is not None and step <= finished]


def _step_of(line: bytes) -> int | None:
    """Return the step that a line is about, or None where it is none of this file's lines."""
    try:
        step = json_text.parse(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None
