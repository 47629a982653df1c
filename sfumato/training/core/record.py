"""How a run was started, as it is noted beside its output. Needs no torch."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import psutil

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config import json_text
from sfumato.config.field_types import require_types
from sfumato.errors import UserError

T = TypeVar("T")

VERSION = 1
_REMEDY = "give a file that ends in run.json"


@dataclass(frozen=True)
class FileRecord:
    """A file, or a folder with all its files, that a run reads.

    Attributes:
        size: in bytes.
        modified_ns: the last change, in ns since 1970.
        sha256: None until it was read.
    """

    size: int
    modified_ns: int
    sha256: str | None = None


@dataclass(frozen=True)
class ProcessRecord:
    """The process that trains; a number alone could be another's by now.

    Attributes:
        created_s: Unix seconds.
    """

    host: str
    number: int
    created_s: float

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, as far as this machine can tell."""
        if self.host != platform.node():
            return False
        try:
            process = psutil.Process(self.number)
            is_other = abs(process.create_time() - self.created_s) > 2
            return is_other or process.status() == psutil.STATUS_ZOMBIE  # killed, and nobody took notice
        except psutil.Error:
            return True
        except (ValueError, OverflowError):  # no number that a process may have
            return True


def this_process() -> ProcessRecord:
    """Return the record of the process that calls."""
    return ProcessRecord(platform.node(), os.getpid(), psutil.Process().create_time())


@dataclass(frozen=True)
class RunRecord:
    """How a run was started, and how it ended. There are no secrets in it.

    Attributes:
        options: what differs from its defaults.
        settings: every option with its value, for a time when defaults are others.
        seed: given or chosen.
        folder: from which relative paths count.
        versions: of Python and libraries.
        files: models and descriptions that were read, by path.
        images: size in bytes and digest of the caption of each image, by folder and name.
        ended: how, or None while the run goes on.
        step: the last step that was done when it ended.
        saved: what was saved and not removed again.
    """

    script: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    folder: str
    versions: Mapping[str, str]
    process: ProcessRecord
    files: Mapping[str, FileRecord]
    images: Mapping[str, Mapping[str, str]]
    ended: str | None = None
    step: int | None = None
    saved: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        with atomic_file(path) as file:
            file.write(json.dumps({"version": VERSION, **asdict(self)}, indent=1).encode())


def read_record(path: Path) -> RunRecord:
    """Read a run's record.

    Raises:
        UserError: it is none, or a later program's.
    """
    try:
        values = json_text.parse(path.read_text("utf-8"))
        if values["version"] != VERSION:
            raise UserError(f"{path} has version {values['version']}; this program reads version {VERSION}")
        own = {field.name: values[field.name] for field in fields(RunRecord)}
        own["files"] = {name: _checked(FileRecord(**file)) for name, file in own["files"].items()}
        own |= {"process": _checked(ProcessRecord(**own["process"])), "saved": tuple(own["saved"])}
        return _checked(RunRecord(**own))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no record of a run ({error}); {_REMEDY}") from error


def _checked(made: T) -> T:
    require_types(made)
    return made
