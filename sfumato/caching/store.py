"""Cache files: numpy archives beside the images, in sd-scripts' layout, that record how they were made.

The record is one more array of the archive, JSON text; sd-scripts does not look at it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config import json_text
from sfumato.data.sources.index import status_of
from sfumato.errors import UserError, guest_code

Arrays = dict[str, NDArray[Any]]
Record = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]

RECORD = "sfumato_record"
_SAMPLE_BYTES = 1 << 20
_MOST_BYTES = 1 << 30
"""Of an array: latents of 8,192 x 8,192 pixels take 64 MB."""


class BrokenCacheError(Exception):
    """A cache file that cannot be read; the message says why."""


def read(path: Path, names: Iterable[str]) -> Arrays:
    """Return those of the named arrays that the file has; none where there is no file.

    Raises:
        BrokenCacheError: the file is damaged.
    """
    with _opened(path) as archive:
        there = _names(archive)
        return {name: _array(archive, name) for name in names if name in there and archive}


def names(path: Path) -> set[str]:
    """Return the names of the file's arrays; none where there is no file.

    Raises:
        BrokenCacheError: the file is damaged.
    """
    with _opened(path) as archive:
        return _names(archive)


def contents(path: Path, names: Iterable[str], suffix: str = "") -> tuple[Shapes, Record | None]:
    """Return the shapes of those of the named arrays that the file has, and its record if there is one.

    Args:
        suffix: of the record's name.

    Raises:
        BrokenCacheError: the file or the record is damaged, or an array holds something else than numbers.
    """
    with _opened(path) as archive:
        if archive is None:
            return {}, None
        there, name = _names(archive), RECORD + suffix
        shapes = {name: _shape(archive, name) for name in names if name in there}
        return shapes, _record(archive, name) if name in there else None


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | None]:
    """Open a file, if it is there, and turn whatever is wrong with it into BrokenCacheError."""
    try:
        with guest_code("numpy cannot read it", passes=_is_ours), zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        yield None
    except UserError as error:
        raise BrokenCacheError(str(error)) from error


def _is_ours(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | BrokenCacheError)


def _names(archive: zipfile.ZipFile | None) -> set[str]:
    return {name.removesuffix(".npy") for name in archive.namelist()} if archive else set()


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > _MOST_BYTES:
        raise BrokenCacheError(f"its {name} would take {member.file_size:,} bytes")
    # Half the time of `np.load`, which goes through each array in pieces.
    return np.lib.format.read_array(io.BytesIO(archive.read(member)), allow_pickle=False)


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """Return an array's shape without reading its numbers."""
    with archive.open(f"{name}.npy") as file:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    _require_numbers(name, dtype)
    return shape


def _record(archive: zipfile.ZipFile, name: str) -> Record:
    record = json_text.parse(str(_array(archive, name)))
    if not isinstance(record, dict):
        raise BrokenCacheError("its record is no JSON object")
    return record


def update(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Add arrays to a file, or replace them; whatever else it holds is kept, unless it is damaged."""
    try:
        kept = read(path, names(path) - arrays.keys() - _TAKEN)
    except BrokenCacheError:
        kept = {}
    write(path, {**kept, **arrays})


_TAKEN = {"file", "allow_pickle"}  # names that np.savez has taken for itself


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a file, whole or not at all; one that a power failure has emptied is made again."""
    size_bytes = sum(array.nbytes for array in arrays.values())
    with atomic_file(path, size_bytes, is_flushed=False) as file:
        np.savez(file, allow_pickle=False, **arrays)


def record_array(record: Record) -> NDArray[Any]:
    """Return a record as an array for a cache file."""
    return np.array(json.dumps(record, sort_keys=True))


def as_tensor(name: str, array: NDArray[Any]) -> Tensor:
    """Return a stored array as a tensor.

    Raises:
        BrokenCacheError: it holds something else than numbers.
    """
    _require_numbers(name, array.dtype)
    return torch.from_numpy(array)


def _require_numbers(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf" or not dtype.isnative or dtype.itemsize > 8:
        raise BrokenCacheError(f"its {name} holds values of type {dtype}")


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as numpy stores it; bfloat16, which numpy lacks, becomes float32 without loss."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def image_state(path: str) -> list[int]:
    """Return size and time of an image file, which tell one image from another; [] if there is none."""
    status = status_of(path)
    return [status.st_size, status.st_mtime_ns] if status else []


def is_newer(path: Path, *sources: str | Path) -> bool:
    """Return whether a cache file was written after all the sources that exist."""
    times = [os.stat(source).st_mtime_ns for source in sources if os.path.exists(source)]
    return os.stat(path).st_mtime_ns >= max(times, default=0)


def has_content(path: str) -> bool:
    """Return whether a cache file is there, and not emptied by a power failure."""
    status = status_of(path)
    return status is not None and status.st_size > 0


def model_identity(path: Path | None) -> str:
    """Return what tells one model file (or folder) from another, wherever it lies."""
    if path is None:
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return hashlib.sha256("".join(map(_file_identity, files)).encode()).hexdigest()[:32]


def _file_identity(path: Path) -> str:
    """Hash the size, the beginning and the end: whole files of 10 GB would take a minute."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(str(size_bytes).encode() + file.read(_SAMPLE_BYTES))
        file.seek(max(size_bytes - _SAMPLE_BYTES, 0))
        digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
