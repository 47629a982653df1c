"""What was found out about the files of a folder, kept beside them: a restart opens only what changed.

A finding counts while its file has the size and the time that it had then; without an index everything is
found out again. It is an SQLite file: in the standard library, changed row by row, in transactions, by
several processes.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from urllib.parse import quote

NAME = ".sfumato-index.sqlite"
"""Name of the index in each folder."""

_VERSION = 2
"""To be raised whenever the same file would be read differently than before."""

_TABLE = """CREATE TABLE IF NOT EXISTS findings (
    kind TEXT, name TEXT, stamped TEXT, PRIMARY KEY (kind, name)
) WITHOUT ROWID"""
# SQLite keeps values of any type in a column of any type.
_FINDINGS = """SELECT name, stamped FROM findings
    WHERE kind = ? AND typeof(name) = 'text' AND typeof(stamped) = 'text'"""
# A file that was written so recently may be written once more without a change of its time (FAT: 2 s).
_TOO_RECENT_NS = 2_000_000_000

logger = logging.getLogger(__name__)

Status = os.stat_result | None
"""Size and time of a file among others; None if there is none."""


def status_of(path: str) -> Status:
    """Return the state that a file is in."""
    try:
        return os.stat(path)
    except OSError:
        return None


@dataclass
class Index:
    """The findings about files in any number of folders.

    Attributes:
        unusable: folders in which no index can be kept, each said once.
    """

    unusable: set[str] = field(default_factory=set)
    _folders: dict[str, _Folder] = field(default_factory=dict)

    def remember(self, kind: str, path: str, find_out: Callable[[str], str]) -> str:
        """Return what `find_out` says about a file; it is not called if the file is as it was."""
        folder, _, name = path.rpartition(os.sep)
        status = status_of(path)
        finding = _of_now(self._place(folder).known(kind).get(name), status)
        if finding is None:
            finding = find_out(path)
            self.learn(kind, path, finding, status)
        return finding

    def recall_all(self, files: Iterable[tuple[str, str]]) -> Iterator[tuple[Status, str | None]]:
        """Yield of each file its state and what was found out about it, if that is known and it is as it was.

        Args:
            files: (kind, path); those of one folder are best neighbours.
        """
        at, asked, known = "", "", dict[str, str]()
        with closing(_Asker()) as asker:
            for kind, path in files:
                folder, _, name = path.rpartition(os.sep)
                if kind != asked or folder != at:
                    at, asked, known = folder, kind, self._place(folder).known(kind)
                status = asker.status(path, folder, name)
                yield status, _of_now(known.get(name), status)

    def learn(self, kind: str, path: str, finding: str, status: Status) -> None:
        """Note a finding about a file in the state that it had before it was opened."""
        folder, _, name = path.rpartition(os.sep)
        place = self._place(folder)
        if status and status.st_mtime_ns < place.too_recent_ns:
            place.learn(kind, name, status, finding)

    def learn_own(self, kind: str, path: str, finding: str) -> None:
        """Note a finding about a file that this process has just written, so that it is settled at once."""
        folder, _, name = path.rpartition(os.sep)
        if status := status_of(path):
            self._place(folder).learn(kind, name, status, finding)

    def save(self) -> None:
        """Write what is new, and let go of the rest."""
        while self._folders:
            folder, place = self._folders.popitem()
            if place.learned and folder not in self.unusable:
                self._save(folder, place)

    def _save(self, folder: str, place: _Folder) -> None:
        try:
            place.save()
        except sqlite3.Error as error:
            self.unusable.add(folder)
            logger.info("%s has no index of its files (%s): they are read at every start", folder, error)

    def _place(self, folder: str) -> _Folder:
        if folder not in self._folders:
            self._folders[folder] = _Folder(folder)
        return self._folders[folder]


@dataclass
class _Asker:
    """Asks for the states of files; relative to their folder, for the way there takes a fifth of the time."""

    _folder: str = ""
    _descriptor: int | None = None

    def status(self, path: str, folder: str, name: str) -> Status:
        if folder != self._folder:
            self.close()
            self._folder, self._descriptor = folder, _opened(folder)
        if self._descriptor is None:
            return status_of(path)
        try:
            return os.stat(name, dir_fd=self._descriptor)
        except OSError:
            return None

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _opened(folder: str) -> int | None:
    """Return a descriptor of a folder, or None where files cannot be asked for by one."""
    try:
        return os.open(folder, os.O_RDONLY) if os.stat in os.supports_dir_fd else None
    except OSError:
        return None


@dataclass
class _Folder:
    """One folder's findings by kind and file name, and those not yet written.

    A finding is kept with the file's stamp before it, as one string, here and in the file: a tuple would take
    twice the memory, and numbers would have to be written out for each comparison.
    """

    folder: str
    too_recent_ns: int = field(default_factory=lambda: time.time_ns() - _TOO_RECENT_NS)
    learned: list[tuple[str, str, str]] = field(default_factory=list)
    _known: dict[str, dict[str, str]] = field(default_factory=dict)
    _was_read: bool = False

    def known(self, kind: str) -> dict[str, str]:
        if kind not in self._known:
            self._known[kind] = self._read(kind)
        return self._known[kind]

    def learn(self, kind: str, name: str, status: os.stat_result, finding: str) -> None:
        stamped = _stamp(status) + finding
        with suppress(UnicodeEncodeError):  # a name that is not valid text cannot be a key
            name.encode()
            self.known(kind)[name] = stamped
            self.learned.append((kind, name, stamped))

    def save(self) -> None:
        try:
            self._write()
        except sqlite3.OperationalError:  # not writable, locked, disk full
            raise
        except sqlite3.DatabaseError:  # damaged
            with suppress(OSError):
                os.unlink(self._path)
            self._write()

    @property
    def _path(self) -> str:
        return os.path.join(self.folder, NAME)

    def _read(self, kind: str) -> dict[str, str]:
        if not os.path.exists(self._path):
            return {}
        try:
            with closing(sqlite3.connect(f"file:{quote(self._path)}?mode=ro", uri=True)) as connection:
                if not _is_current(connection):
                    return {}
                self._was_read = True
                return dict(connection.execute(_FINDINGS, (kind,)))
        except sqlite3.OperationalError as error:  # locked, not readable
            logger.info("%s is not used: %s", self._path, error)
        except sqlite3.DatabaseError as error:
            logger.warning("%s is damaged (%s) and made again", self._path, error)
        return {}

    def _write(self) -> None:
        with closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            if not _is_current(connection):
                connection.execute("DROP TABLE IF EXISTS findings")
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.executemany("INSERT OR REPLACE INTO findings VALUES (?, ?, ?)", self.learned)
            connection.executemany("DELETE FROM findings WHERE kind = ? AND name = ?", self._gone())

    def _gone(self) -> list[tuple[str, str]]:
        """Return kind and name of findings about files that are no more."""
        if not self._was_read:
            return []
        present = set(os.listdir(self.folder))
        return [(kind, name) for kind, rows in self._known.items() for name in rows if name not in present]


def _is_current(connection: sqlite3.Connection) -> bool:
    """Return whether a file is of this version, with the columns that it should have."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    columns = [column for _, column, *_ in connection.execute("PRAGMA table_info(findings)")]
    return version == _VERSION and columns == ["kind", "name", "stamped"]


def _stamp(status: os.stat_result) -> str:
    """Return size and time of a file, each with a blank behind it."""
    return f"{status.st_size} {status.st_mtime_ns} "


def _of_now(stamped: str | None, status: Status) -> str | None:
    """Return what is noted about a file, if that is about its state of now."""
    if stamped is None or status is None:
        return None
    stamp = f"{status.st_size} {status.st_mtime_ns} "  # `_stamp`, without a call for each of many files
    return stamped[len(stamp) :] if stamped.startswith(stamp) else None
