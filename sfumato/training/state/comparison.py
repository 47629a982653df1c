"""What has changed since a recorded run: options, versions, files, images and captions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sfumato.checkpoints.hashes import file_sha256, folder_sha256
from sfumato.training.core.events import Started
from sfumato.training.core.observer import Observer
from sfumato.training.core.record import FileRecord, RunRecord
from sfumato.training.state.evidence import ALL
from sfumato.training.state.resume import PLACES

_MOST_NAMES = 3
"""That a line shows of the images of a folder."""

logger = logging.getLogger(__name__)


class Comparison(Observer):
    """Says before the first step in what a run differs from an earlier one."""

    def __init__(self, earlier: RunRecord) -> None:
        self._earlier = earlier

    def started(self, event: Started) -> None:
        """Log a line for each difference."""
        if event.record is None:
            return
        lines = list(differences(self._earlier, event.record))
        for line in lines:
            logger.warning("since the first run: %s", line)
        if not lines:
            logger.info("since the first run nothing has changed")


def differences(earlier: RunRecord, now: RunRecord) -> Iterator[str]:
    """Yield a line for each difference between two runs.

    A file is read only if its size is what it was and its time is not.
    """
    yield from _of_settings(earlier, now)
    yield from _of_versions(earlier.versions, now.versions)
    for name in sorted(earlier.files.keys() | now.files.keys()):
        yield from _of_file(name, earlier.files.get(name), now.files.get(name))
    for folder in sorted(earlier.images.keys() | now.images.keys()):
        yield from _of_folder(folder, earlier.images.get(folder, {}), now.images.get(folder, {}))


def _of_settings(earlier: RunRecord, now: RunRecord) -> Iterator[str]:
    if earlier.seed != now.seed:
        yield f"--seed was {earlier.seed} and is {now.seed}"
    before, after = earlier.settings, json.loads(json.dumps(now.settings))
    for name in sorted((before.keys() | after.keys()) - {"seed", *PLACES}):
        if before.get(name) != after.get(name):
            yield f"--{name} was {before.get(name, 'not there')} and is {after.get(name, 'not there')}"


def _of_versions(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{name} was {before.get(name, 'not installed')} and is {now.get(name, 'not installed')}"


def _of_file(name: str, before: FileRecord | None, now: FileRecord | None) -> Iterator[str]:
    if before is None:
        yield f"{name} was not used"
    elif now is None:
        yield f"{name} is not used, or not there any more"
    elif before.size != now.size:
        yield f"{name} has {now.size} bytes and had {before.size}"
    elif before.modified_ns != now.modified_ns and _sha256(Path(name)) != before.sha256:
        yield f"{name} holds something else" if before.sha256 else f"{name} was written anew"


def _sha256(path: Path) -> str:
    logger.info("reading %s, whose time has changed", path)
    return folder_sha256(path) if path.is_dir() else file_sha256(path)


def _of_folder(folder: str, before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Yield a line about the images of one folder; see `RunRecord.images`."""
    if ALL in before or ALL in now:
        if before != now:
            yield f"images or captions of {folder} are others"
        return
    both = [name for name in before if name in now]
    found = {
        "added": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
        "changed": _changed(both, before, now, lambda entry: entry.partition(" ")[0]),
        "captioned differently": _changed(both, before, now, lambda entry: entry.partition(" ")[2]),
    }
    said = [f"{len(names)} {what} ({_shown(names)})" for what, names in found.items() if names]
    if said:
        yield f"images of {folder}: {', '.join(said)}"


def _changed(
    names: Sequence[str], before: Mapping[str, str], now: Mapping[str, str], part: Callable[[str], str]
) -> list[str]:
    return [name for name in names if part(before[name]) != part(now[name])]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
