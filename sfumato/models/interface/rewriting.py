"""Whole models written again: in another layout or format, or with parts that were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from sfumato.models.interface.family import Family


@dataclass(frozen=True)
class Rewriting:
    """How a model is written again.

    Attributes:
        dtype: of all floating-point tensors of its parts; None keeps each tensor's own.
        metadata: what a safetensors file says of itself.
        epoch, step: added to those of a pickled base, for a pickled file.
        as_safetensors: whether a folder's weights are safetensors; otherwise they are pickled.
        reference: folder in diffusers' layout whose scheduler and tokenizers another one takes over.
    """

    dtype: torch.dtype | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    as_safetensors: bool = True
    reference: Path | None = None


class Rewritable(Family, Protocol):
    """A family whose models are published as files and as folders in diffusers' layout."""

    def rewrite_file(self, path: Path, how: Rewriting) -> None:
        """Write the model as one file, safetensors or, if its suffix says so and the family can, pickled."""
        ...

    def rewrite_folder(self, folder: Path, how: Rewriting) -> None:
        """Write the model as a folder in diffusers' layout."""
        ...
