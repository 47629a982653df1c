"""What an earlier run of the same name left behind when it was killed, removed before the next one saves."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sfumato.checkpoints.atomic import clear_unfinished
from sfumato.errors import UserError
from sfumato.training.core.record import ProcessRecord, read_record
from sfumato.training.observers.preview import FOLDER
from sfumato.training.observers.saving import DEFAULT_NAMES, Names
from sfumato.training.state.resume import POSITION, UNFINISHED


def clear(names: Names) -> None:
    """Remove unfinished files, previews and states, unless the run that they are of may still go on.

    Its record, which is replaced after this, says which process it was, and on which machine.
    """
    process = _earlier_process(names)
    is_gone = process is not None and process.is_gone
    for folder in (names.folder, names.folder / FOLDER):
        clear_unfinished(folder, process.number if process is not None and is_gone else None)
    for path in _superseded_states(names) if is_gone else ():
        shutil.rmtree(path, ignore_errors=True)


def _earlier_process(names: Names) -> ProcessRecord | None:
    with suppress(UserError):
        return read_record(names.record()).process
    return None


def _superseded_states(names: Names) -> Iterator[Path]:
    """Yield the states of a run that are incomplete, or whose successors are in place."""
    stems = [names.name] if names.name else DEFAULT_NAMES.values()
    beginning = "|".join(map(re.escape, stems))
    unfinished = re.compile(rf"\.((?:{beginning})(?:-step\d{{8}}|-\d{{6}})?-state)({'|'.join(UNFINISHED)})")
    for path in names.folder.glob(".*-state.*"):
        match = unfinished.fullmatch(path.name)
        if match and (path.with_name(match[1]).exists() or not (path / POSITION).exists()):
            yield path
