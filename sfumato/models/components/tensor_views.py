"""Tensors of an open file as a part of a model sees them: without prefix, under the names that it uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sfumato.checkpoints.tensors import TensorReader

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorView:
    """Named tensors that are read when asked for; the file must still be open then.

    Attributes:
        path: the file or folder, for messages.
        shapes: of each tensor by name.
        get: reads a tensor.
    """

    path: Path
    shapes: Shapes
    get: Callable[[str], Tensor]

    def renamed(self, names: Mapping[str, str]) -> TensorView:
        """Return those tensors that `names` lists (old names by new), under their new names."""
        shapes = {new: self.shapes[old] for new, old in names.items()}
        return TensorView(self.path, shapes, lambda name: self.get(names[name]))

    def below(self, prefix: str) -> TensorView:
        """Return the tensors whose names begin with `prefix`, without it."""
        return self.renamed(
            {name.removeprefix(prefix): name for name in self.shapes if name.startswith(prefix)}
        )

    def hollow(self) -> TensorView:
        """Return tensors of the same names and shapes without numbers, on the meta device."""
        return replace(self, get=lambda name: torch.empty(self.shapes[name], device="meta"))


def view_of(file: TensorReader) -> TensorView:
    """Return all tensors of an open file."""
    return TensorView(file.path, {name: file.shape(name) for name in file.keys()}, file.get)  # noqa: SIM118 - a reader is no mapping
