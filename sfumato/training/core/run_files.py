"""The small files beside a run's output, and which run a path belongs to. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sfumato.errors import UserError

SETTINGS, METRICS, RECORD, CONTROL = "config.toml", "metrics.jsonl", "run.json", "control"
"""What stands behind the run's name: its options, its figures and events, how it was started, the way in."""

_ENDINGS = (SETTINGS, METRICS, RECORD, CONTROL, "safetensors", "ckpt", "pt")
_MOMENT = re.compile(r"(-step\d{8}|-\d{6})?(-state)?$")
"""What files of the middle of a run have behind its name."""


def record_for(path: Path) -> Path:
    """Return the record of the run that a path belongs to.

    Args:
        path: folder and name of the output, anything that the run wrote there, or a folder of one run.

    Raises:
        UserError: there is no such run.
    """
    for stem in _stems(path.name):
        record = path.with_name(f"{stem}.{RECORD}")
        if record.is_file():
            return record
    folder = path if path.is_dir() else path.parent
    records = sorted(folder.glob(f"*.{RECORD}"))
    if folder == path and len(records) == 1:
        return records[0]
    known = ", ".join(str(found).removesuffix(f".{RECORD}") for found in records)
    raise UserError(
        f"{path} is no run: there is no {path.name}.{RECORD}; give its --output_dir/--output_name"
        + (f", one of {known}" if known else "")
    )


def control_for(record: Path) -> Path:
    """Return the control file of the run with this record."""
    return record.with_name(f"{record.name.removesuffix(RECORD)}{CONTROL}")


def _stems(name: str) -> Iterator[str]:
    """Yield the names that the run of a file may have."""
    if not name:
        return
    yield name
    for ending in _ENDINGS:
        name = name.removesuffix(f".{ending}")
    yield name
    yield _MOMENT.sub("", name)
