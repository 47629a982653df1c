"""Metadata files as the preparation tools rewrite them: everything they do not change stays as it was.

A file maps the key of each image, its path or its name without suffix, to `caption`, `tags`,
`train_resolution` and whatever else there is.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config import json_text
from sfumato.data.images.images import SUFFIXES
from sfumato.errors import UserError
from sfumato.log import counted

Records = dict[str, dict[str, Any]]

logger = logging.getLogger(__name__)


def read(path: Path, option: str) -> Records:
    """Return the records of a file.

    Args:
        option: what the path was given as, for messages.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        records = json_text.parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{option} {path} is not valid JSON: {error}") from error
    if not isinstance(records, dict) or not all(isinstance(record, dict) for record in records.values()):
        raise UserError(f"{option} {path} is no metadata file; it should map each image to its caption")
    return records


def write(path: Path, records: Records) -> None:
    """Write the records, whole or not at all."""
    with atomic_file(path) as file:
        # Names that are no valid text become escapes of JSON, by which they are read again.
        file.write(json.dumps(records, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    logger.info("%s now in %s", counted(len(records), "image"), path)


def images(folder: str, *, recursive: bool | None = None) -> list[Path]:
    """Return the images in a folder, and those in the folders below it with `recursive`, sorted.

    Args:
        recursive: None where the tool has no such option, which messages then do not offer.

    Raises:
        UserError: there are none, or the folder cannot be read.
    """
    found = sorted(path for path in _files(folder, bool(recursive)) if path.suffix.lower() in SUFFIXES)
    if not found:
        remedy = "--recursive looks below it" if recursive is False else "name the folder that holds them"
        raise UserError(f"{folder} has no images; {remedy}")
    return found


def key_of(image: Path, *, full_path: bool) -> str:
    """Return the key that stands for an image."""
    return str(image) if full_path else image.stem


def _files(folder: str, recursive: bool) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        yield from (Path(place, name) for name in names)
        if not recursive:
            folders.clear()
