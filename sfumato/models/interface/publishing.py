"""Whole models written to the disk: the parts that were trained, and everything else as their base has it.

Nothing has to be in memory at once. A part is handed over as named tensors that are made when their turn
comes: those of a module, of a file, or gathered from several processes. In which order they are asked for
depends on their names, shapes and dtypes and on `Publishing` alone, so that processes can go along together.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from sfumato.checkpoints.atomic import atomic_folder
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.weight_file import WeightFile

PartTensors = Mapping[str, LazyTensor]
"""All tensors of one part, by their names in its state."""

TrainedParts = Mapping[str, PartTensors]
"""The parts that are not as their base has them, by name."""


class Layout(Enum):
    """Which files a model is written as."""

    WHOLE_FILE = "one file with everything that the base's file holds"
    PART_FILES = "a file for each part that is given, as families publish single parts"
    FOLDER = "a folder in diffusers' layout"


@dataclass(frozen=True)
class Publishing:
    """How a model is written.

    Attributes:
        layout: None writes files as the family publishes its models.
        dtype: of all floating-point tensors of its parts; None keeps each tensor's own.
        metadata: what a safetensors file says of itself.
        epoch, step: what a pickled file counts.
        counts_on: whether those of a pickled base are added.
        as_safetensors: whether a folder's weights are safetensors; otherwise they are pickled. Of a file, its
            suffix decides.
        reference: folder in diffusers' layout whose scheduler and tokenizers another one takes over.
        is_complete: whether one file, or a folder, takes in text encoders that have files of their own, too.
    """

    layout: Layout | None = None
    dtype: torch.dtype | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    counts_on: bool = True
    as_safetensors: bool = True
    reference: Path | None = None
    is_complete: bool = False


class Publisher(Protocol):
    """What a family knows of the files that it is published as.

    Attributes:
        layout: of its models where nobody asks for another.
    """

    layout: Layout

    def files(
        self, parts: TrainedParts, path: Path, how: Publishing
    ) -> AbstractContextManager[Sequence[WeightFile]]:
        """Yield the files of weights that a model is written as; what they need of the base is open.

        Args:
            path: the file, or the folder, that is to be written.
            how: with a layout.
        """
        ...

    def copies(self) -> Mapping[str, Path]:
        """Return the base's files that another folder takes over as they are, by their places in it."""
        ...

    def write_settings(self, parts: TrainedParts, folder: Path, how: Publishing) -> None:
        """Write what else a folder holds besides weights."""
        ...


def write(publisher: Publisher, parts: TrainedParts, path: Path, how: Publishing) -> None:
    """Write a model; every file, or the whole folder, appears under its name when it is complete.

    Args:
        parts: what is not as the base has it; everything else comes from the base.
        path: the file or folder. Of several files it is the first; see `part_paths`.

    Raises:
        UserError: the model cannot be written so, the disk is full, or a value is no number or too large.
    """
    how = _with_layout(publisher, how)
    if how.layout is not Layout.FOLDER:
        _write_weights(publisher, parts, path, how)
        return
    with atomic_folder(path) as folder:
        for place, file in publisher.copies().items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / place)
        publisher.write_settings(parts, folder, how)
        _write_weights(publisher, parts, folder, how)


def written_bytes(publisher: Publisher, parts: TrainedParts, how: Publishing) -> int:
    """Return how much `write` would write, from headers and shapes alone; settings of a folder are left out.

    Raises:
        UserError: the model cannot be written so.
    """
    how = _with_layout(publisher, how)
    copies = publisher.copies().values() if how.layout is Layout.FOLDER else ()
    with publisher.files(parts, Path("model.safetensors"), how) as files:
        return sum(file.size_bytes for file in files) + sum(file.stat().st_size for file in copies)


def tensors_of(module: nn.Module, *, is_copy: bool = False) -> dict[str, LazyTensor]:
    """Return the tensors of a part that is in memory, live.

    Args:
        is_copy: whether they are those of a file, as they are; see `LazyTensor`.
    """
    return {name: LazyTensor.of(tensor, is_copy=is_copy) for name, tensor in module.state_dict().items()}


def part_paths(path: Path, parts: Sequence[str]) -> dict[str, Path]:
    """Return the file of each part: `path` is the first one's, and others have their names before the suffix.

    Args:
        parts: one or more; the first is the one that a model is known by.
    """
    if not parts:
        raise ValueError("no part is given that could be written as a file of its own")
    names = {part: path.with_name(f"{path.stem}_{part}{path.suffix}") for part in parts[1:]}
    return {parts[0]: path} | names


def _with_layout(publisher: Publisher, how: Publishing) -> Publishing:
    return how if how.layout is not None else replace(how, layout=publisher.layout)


def _write_weights(publisher: Publisher, parts: TrainedParts, path: Path, how: Publishing) -> None:
    with publisher.files(parts, path, how) as files:
        for file in files:
            file.write()
