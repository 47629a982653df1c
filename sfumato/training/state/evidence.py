"""What a run was made from: versions, files with their hashes, images with their captions."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sfumato import __version__
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import TrainingData
from sfumato.training.core.record import FileRecord

_LIBRARIES = (
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow", "bitsandbytes",
    "lycoris-lora",
)  # fmt: skip

MOST_NAMES = 10_000
"""Images of a folder that are noted one by one: the record stays in memory, and is written at every save."""
ALL = "*"
"""Stands for all images of a larger folder; no file system has such a name."""


def versions() -> dict[str, str]:
    """Return the versions of all that computes, of what is installed."""
    own = {"sfumato": __version__, "python": platform.python_version()}
    found = {name: _version(name) for name in _LIBRARIES}
    return own | {name: number for name, number in found.items() if number}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def file_records(paths: Iterable[str | Path | None]) -> dict[str, FileRecord]:
    """Return size and time of the files and folders that are on this disk; reads none of them."""
    there = (Path(path) for path in paths if path and os.path.exists(path))
    return {os.path.abspath(path): _stamped(path) for path in there}


def image_records(data: TrainingData) -> dict[str, dict[str, str]]:
    """Return the size in bytes and a digest of the caption of each image, by folder and name; reads nothing.

    A large folder has one digest of all that instead. Of the batches that a class makes nothing is known.
    """
    found: dict[str, dict[str, str]] = {}
    sets = data.sets if isinstance(data, TrainingSet) else ()
    held_back = data.validation.sets if data.validation is not None else ()
    for images in (image_set.images for image_set in (*sets, *held_back)):
        for path, caption, size in zip(images.paths, images.captions, images.num_bytes, strict=True):
            folder, name = os.path.split(os.path.abspath(path))
            found.setdefault(folder, {})[name] = f"{size} {_digest(caption)}"
    return {folder: _shortened(entries) for folder, entries in found.items()}


def _shortened(entries: dict[str, str]) -> dict[str, str]:
    if len(entries) <= MOST_NAMES:
        return entries
    return {ALL: _digest("\n".join(f"{name} {entry}" for name, entry in sorted(entries.items())))}


def _stamped(path: Path) -> FileRecord:
    files = [found for found in path.rglob("*") if found.is_file()] if path.is_dir() else [path]
    states = [found.stat() for found in files]
    latest = max((state.st_mtime_ns for state in states), default=0)
    return FileRecord(sum(state.st_size for state in states), latest)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
