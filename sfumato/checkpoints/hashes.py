"""Hashes by which web galleries and user interfaces recognise model files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sfumato.checkpoints.lazy import AnyTensor
from sfumato.checkpoints.tensors import serialized

_WINDOW_START = 0x100000
_WINDOW_END = 0x110000


def adapter_hashes(tensors: Mapping[str, AnyTensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return `sshs_model_hash` and `sshs_legacy_hash` of an adapter file, reading each tensor once.

    The model hash is the SHA-256 of the tensors' bytes in standard order; the legacy one that of 64 KiB at
    1 MiB of the file as it would be with only the training metadata (`ss_*`) in its header.
    """
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    header, chunks = serialized(tensors, kept)
    data_hash, window = hashlib.sha256(), _Window()
    window.update(header)
    for chunk in chunks:
        data_hash.update(chunk)
        window.update(chunk)
    return {"sshs_model_hash": data_hash.hexdigest(), "sshs_legacy_hash": window.hexdigest()}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file, `NOFILE` if it is missing, `IsADirectory` if it is a folder."""
    if not path.is_file():
        return _substitute(path)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return a SHA-256 of all files below a folder, with their names."""
    digest = hashlib.sha256()
    for path in sorted(found for found in folder.rglob("*") if found.is_file()):
        digest.update(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return digest.hexdigest()


def legacy_file_hash(path: Path) -> str:
    """Return 8 hex digits made of 64 KiB at 1 MiB of a file; substitutes as in `file_sha256`."""
    if not path.is_file():
        return _substitute(path)
    with path.open("rb") as file:
        file.seek(_WINDOW_START)
        return hashlib.sha256(file.read(_WINDOW_END - _WINDOW_START)).hexdigest()[:8]


class _Window:
    """A hash of the bytes of a stream that fall into the legacy window."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._position = 0

    def update(self, chunk: bytes | memoryview) -> None:
        start = max(0, _WINDOW_START - self._position)
        end = max(0, _WINDOW_END - self._position)
        self._hash.update(chunk[start:end])
        self._position += len(chunk)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()[:8]


def _substitute(path: Path) -> str:
    return "IsADirectory" if path.is_dir() else "NOFILE"
