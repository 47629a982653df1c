"""What a run saves, uploaded in order by one thread, while training waits or goes on."""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sfumato.hub.uploading import Uploads
from sfumato.log import counted
from sfumato.training.core.events import Ended, Saved
from sfumato.training.core.observer import Observer

logger = logging.getLogger(__name__)


class HubUploads(Observer):
    """Uploads saved weights, and states if they are wanted; in the first process only.

    What waits for its turn is kept under a second name, since a run may remove or replace it meanwhile.

    Args:
        states: whether states are uploaded.
        is_async: whether training goes on meanwhile; the end of the run waits for all.
        waiting: folder for the second names, on the disk of what is saved; it is removed.
    """

    def __init__(self, uploads: Uploads, waiting: Path, *, states: bool, is_async: bool) -> None:
        self._uploads, self._waiting = uploads, waiting
        self._states, self._is_async = states, is_async
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hub")
        self._unfinished: list[Future[None]] = []
        self._num_kept = 0
        shutil.rmtree(waiting, ignore_errors=True)  # of a run that was killed

    def saved(self, event: Saved) -> None:
        """Upload what was saved, or let it wait for its turn."""
        for path in (event.path, *event.others):
            self.add(path, path.name)
        if self._states and event.state is not None:
            self.add(event.state, event.state.name)

    def add(self, path: Path, name: str) -> None:
        """Upload a file or folder under a name within the destination's folder."""
        place = self._uploads.destination.place(name)
        kept = self._kept(path) if self._is_async else None
        future = self._thread.submit(self._upload, kept or path, place, path)
        if kept is None:
            future.result()
        else:
            self._unfinished = [other for other in self._unfinished if not other.done()] + [future]

    def ended(self, event: Ended) -> None:
        """Wait for what is under way, and say what was not uploaded."""
        left = [future for future in self._unfinished if not future.done()]
        if left:
            logger.info("waiting for %s", counted(len(left), "upload"))
        self._thread.shutdown(wait=True)
        shutil.rmtree(self._waiting, ignore_errors=True)
        self._uploads.report()

    def _upload(self, path: Path, place: str, original: Path) -> None:
        self._uploads.upload(path, place, original)
        if path != original:
            shutil.rmtree(path.parent, ignore_errors=True)

    def _kept(self, path: Path) -> Path | None:
        """Return a second name of a file or folder; None where the file system gives none."""
        self._num_kept += 1
        kept = self._waiting / str(self._num_kept) / path.name
        try:
            _link(path, kept)
        except OSError as error:
            logger.debug("%s cannot be kept for its upload, which training waits for: %s", path, error)
            shutil.rmtree(kept.parent, ignore_errors=True)
            return None
        return kept


def _link(path: Path, kept: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, kept, copy_function=os.link)
        return
    kept.parent.mkdir(parents=True)
    os.link(path, kept)
