"""The index of a folder in diffusers' layout, and what one folder takes over from another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.tensors import SUFFIXES

INDEX = "model_index.json"


def read_index(folder: Path) -> dict[str, Any]:
    """Return what a folder's index says of each of its parts; nothing where it has no index."""
    file = folder / INDEX
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def copied(reference: Path, folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Copy these folders, where there are any; return what the reference's index says of each."""
    index = read_index(reference)
    found = {name: index[name] for name in names if name in index and (reference / name).is_dir()}
    for name in found:
        shutil.copytree(reference / name, folder / name, dirs_exist_ok=True)
    return found


def other_parts(folder: Path, known: Collection[str]) -> dict[str, list[str]]:
    """Return what a folder's index says of its parts besides those that are known."""
    return {
        name: entry
        for name, entry in read_index(folder).items()
        if name not in known and (folder / name).is_dir()
    }


def other_files(folder: Path, known: Collection[str]) -> dict[str, Path]:
    """Return the files of a folder's other parts, and what else lies loose in it, by their places in it.

    Loose weights are left out: they are the model's own in another form, as they were before.
    """
    loose = (file for file in folder.iterdir() if file.is_file() and _is_described(file))
    below = (file for name in other_parts(folder, known) for file in (folder / name).rglob("*"))
    files = sorted((*loose, *(file for file in below if file.is_file())))
    return {file.relative_to(folder).as_posix(): file for file in files}


def _is_described(file: Path) -> bool:
    return file.name[0] != "." and file.name != INDEX and file.suffix not in (*SUFFIXES, *PICKLE_SUFFIXES)
