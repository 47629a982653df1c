"""Where a tool writes: names that will not do are refused before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sfumato.checkpoints.name_trial import try_file
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.tensors import SUFFIXES
from sfumato.errors import UserError


def adapter_output(option: str, name: str | None, sources: Iterable[Path]) -> Path:
    """Return the adapter file to write.

    Args:
        option: that names it, for messages.
        sources: files that are read.

    Raises:
        UserError: there is no name, it has no suffix of an adapter file, or it is one of the sources.
    """
    if not name:
        raise UserError(f"{option} is not given; name the file to write")
    path = Path(name)
    if path.suffix.lower() not in (*SUFFIXES, *PICKLE_SUFFIXES):
        raise UserError(f"{option} is {name}; end it in .safetensors, .pt or .ckpt")
    require_other(option, path, sources)
    return path


def require_other(option: str, path: Path, sources: Iterable[Path]) -> None:
    """Raise UserError if a file cannot be written, or is read, too, and would be lost."""
    if path.resolve() in {source.resolve() for source in sources}:
        raise UserError(f"{option} is {path}, which is read, too, and would be lost; give another name")
    require_writable(option, path)


def require_writable(option: str, path: Path) -> None:
    """Raise UserError if a file cannot be written: its folder, its name or what is there forbids it."""
    if os.path.isdir(path):
        raise UserError(f"{option} is {path}, which is a folder; name the file to write")
    try_file(path, f"give another name as {option}")
