"""The record of a run beside its output: written when it starts, completed until it ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from sfumato.checkpoints.hashes import file_sha256, folder_sha256
from sfumato.config.public import all_values, public_values
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.output.preview import PreviewConfig
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.training.core.events import Ended, Saved, Started
from sfumato.training.core.observer import Observer
from sfumato.training.core.readings import Reading
from sfumato.training.core.record import FileRecord, RunRecord, this_process
from sfumato.training.run.saves import file_metadata
from sfumato.training.run.session import TrainingSession
from sfumato.training.state import evidence

logger = logging.getLogger(__name__)


def record_of(session: TrainingSession) -> RunRecord:
    """Return the record of a run that starts now; no file is read for it."""
    run = session.run
    return RunRecord(
        script=run.script,
        options=public_values(run),
        settings=all_values(run),
        seed=session.seed,
        folder=os.getcwd(),
        versions=evidence.versions(),
        process=this_process(),
        files=evidence.file_records(_read_by(session)),
        images=evidence.image_records(session.training_set),
    )


def _read_by(session: TrainingSession) -> Iterator[str | Path | None]:
    """Yield the files that decide what is trained; None for what is not given."""
    run, family = session.run, session.family
    yield from (family.source(part) for part in (DENOISER, VAE, *family.text_outputs))
    yield run.get(NetworkConfig, NetworkConfig()).network_weights
    yield from run.get(NetworkConfig, NetworkConfig()).base_weights or ()
    yield run[DatasetConfig].dataset_config
    yield run[PreviewConfig].sample_prompts


@dataclass(frozen=True)
class BackgroundReading:
    """What is read beside the first steps: the files of a large model take a minute.

    Attributes:
        metadata: of the files that the run saves.
        hashes: of each file of the record.
    """

    metadata: Future[dict[str, str]]
    hashes: Mapping[str, Future[str]]

    def check(self) -> None:
        """Raise UserError if the metadata turned out to be impossible by now; do not wait for it."""
        if not self.metadata.done():
            return
        try:
            self.metadata.result()
        except OSError as error:
            raise UserError(
                f"{error.filename or 'a model file'} can no longer be read ({error.strerror or error}), and "
                "what is saved tells its hash; see to it that the file stays, and start again"
            ) from error


def read_in_background(session: TrainingSession, files: Mapping[str, FileRecord]) -> BackgroundReading:
    """Begin to read, one file after the other and each once."""
    executor = ThreadPoolExecutor(1)
    sha256 = _each_once(file_sha256)
    metadata = executor.submit(file_metadata, session, sha256)
    hashes = {
        name: executor.submit(folder_sha256 if os.path.isdir(name) else sha256, Path(name)) for name in files
    }
    executor.shutdown(wait=False)
    return BackgroundReading(metadata, hashes)


def _each_once(sha256: Callable[[Path], str]) -> Callable[[Path], str]:
    known = cache(sha256)
    return lambda path: known(Path(os.path.abspath(path)))


class RecordFile(Observer):
    """Keeps the record of a run beside its output."""

    def __init__(self, path: Path, record: RunRecord, reading: BackgroundReading) -> None:
        self._path, self._record, self._reading = path, record, reading

    def started(self, event: Started) -> None:
        """Write what is known."""
        self._record.write(self._path)

    def read(self, reading: Reading) -> None:
        """End the run now, rather than at its first save, if what is saved cannot be described."""
        self._reading.check()

    def saved(self, event: Saved) -> None:
        """Write the hashes that are known by now."""
        self._write()

    def ended(self, event: Ended) -> None:
        """Write how the run ended; wait for hashes only after its last step."""
        if event.how != "finished":
            for future in self._reading.hashes.values():
                future.cancel()
        saved = tuple(map(str, event.saved))
        self._record = replace(self._record, ended=event.how, step=event.step, saved=saved)
        self._write(is_last=event.how == "finished")

    def _write(self, *, is_last: bool = False) -> None:
        files = {
            name: replace(file, sha256=_result(self._reading.hashes[name], waits=is_last))
            for name, file in self._record.files.items()
        }
        try:
            replace(self._record, files=files).write(self._path)
        except UserError as error:  # a full disk: the run itself goes on
            logger.warning("the record of the run is not up to date: %s", error)


def _result(future: Future[str], *, waits: bool) -> str | None:
    if future.cancelled() or not (waits or future.done()):
        return None
    return future.result() if future.exception() is None else None  # it may have been removed meanwhile
