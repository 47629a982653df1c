"""One file of weights that is to be written: what it will hold, in which format, and how large it will be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.pickles import write_pickle
from sfumato.checkpoints.tensors import required_bytes, write_tensors


@dataclass(frozen=True)
class WeightFile:
    """A file to be written: pickled if its suffix says so, otherwise safetensors.

    Attributes:
        tensors: by name, made one at a time when the file is written; in which order depends on their names
            and dtypes alone.
        metadata: strings beside them; pickled files have none.
        dtype: what floating-point weights are cast to; None keeps each tensor's own.
        counters: of a pickled file, as `write_pickle` has it.
    """

    path: Path
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    counters: Mapping[str, int] | None = None

    @property
    def size_bytes(self) -> int:
        """Size on the disk: exact for safetensors, without the frame of a pickled file."""
        return required_bytes(self.tensors, self.metadata, self.dtype)

    def write(self) -> None:
        """Write the file, which appears under its name when it is complete.

        Raises:
            UserError: as `write_tensors` says.
        """
        if self.path.suffix.lower() in PICKLE_SUFFIXES:
            write_pickle(self.path, self.tensors, self.counters, self.dtype)
        else:
            write_tensors(self.path, self.tensors, self.metadata, self.dtype)
