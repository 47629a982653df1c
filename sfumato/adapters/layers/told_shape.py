"""The shape of a layer's weight, as the tensors of its adapter tell it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class ToldShape:
    """What a layer's tensors tell.

    Attributes:
        rows, columns: of the weight as a matrix, a kernel being part of the columns.
        kernel: () of a Linear; None where it is not told.
    """

    rows: int
    columns: int
    kernel: tuple[int, ...] | None = ()

    def module(self) -> nn.Module:
        """Return a layer of this shape that needs no memory.

        Raises:
            ValueError: the kernel is not told.
        """
        if self.kernel is None:
            raise ValueError("a layer's kernel is not told")
        size = math.prod(self.kernel)
        with torch.device("meta"):
            if not self.kernel:
                return nn.Linear(self.columns, self.rows)
            return nn.Conv2d(self.columns // size, self.rows, self.kernel)  # type: ignore[arg-type]
