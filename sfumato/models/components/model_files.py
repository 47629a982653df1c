"""Open a base model's file, or a part of it, whatever program wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from sfumato.checkpoints.quantisation import require_plain, require_plain_folder
from sfumato.checkpoints.tensors import TensorReader, open_tensors
from sfumato.models.components.part_prefixes import prefix_in


def open_weights(path: Path, *, use_mmap: bool = True) -> TensorReader:
    """Open a model's tensors, as `open_tensors` does, unless they are quantised.

    Raises:
        UserError: as `open_tensors` says; or the weights are no plain numbers.
    """
    return open_part(path, (), use_mmap=use_mmap)


def open_part(path: Path, prefixes: Iterable[str], *, use_mmap: bool = True) -> TensorReader:
    """Open one part of a model, by its names without prefix.

    The file may hold that part alone, or all parts: what lies below the first of `prefixes` that occurs is
    the part, or everything if none does.

    Args:
        prefixes: what programs put before the part's names; see `part_prefixes`.

    Raises:
        UserError: as `open_weights` says; other parts may be quantised.
    """
    if path.is_dir():
        require_plain_folder(path)
    with ExitStack() as opened:
        file = opened.enter_context(open_tensors(path, use_mmap=use_mmap))
        part = plain(file.below(prefix_in(file.keys(), prefixes)))
        opened.pop_all()  # what is plain stays open
        return part


def plain(file: TensorReader) -> TensorReader:
    """Return an open file as it is; raise UserError if its weights are quantised."""
    require_plain(file.path, {name: file.info(name) for name in file.keys()}, file.metadata)  # noqa: SIM118 - a reader is no mapping
    return file
