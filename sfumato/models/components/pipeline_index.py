"""The index of a folder in diffusers' layout, and what one folder takes over from another."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.tensors import SUFFIXES
from sfumato.config import json_text

INDEX = "model_index.json"


def read_index(folder: Path) -> dict[str, Any]:
    """Return what a folder's index says of each of its parts; nothing where it has no index.

    Raises:
        UserError: the index is damaged.
    """
    file = folder / INDEX
    return json_text.read_object(file) if file.is_file() else {}


def copied(reference: Path, folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Copy these folders, where there are any; return what the reference's index says of each."""
    index = read_index(reference)
    found = {name: index[name] for name in names if name in index and (reference / name).is_dir()}
    for name in found:
        shutil.copytree(reference / name, folder / name, dirs_exist_ok=True)
    return found


def other_parts(folder: Path, known: Collection[str]) -> dict[str, list[str]]:
    """Return what a folder's index says of its parts besides those that are known.

    A part is a folder within the folder: no other is read or copied, whatever the index says.
    """
    index = read_index(folder)
    inside = {path.name for path in folder.iterdir() if path.is_dir()} if index else set()
    return {name: entry for name, entry in index.items() if name in inside - {*known}}


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
