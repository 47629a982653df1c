"""Tensors kept in memory, packed so that a loader's workers can share them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

_Kind = tuple[torch.Size, torch.dtype]


@dataclass
class MemoryStore:
    """Tensors by key; those of one shape become one tensor: a few shared blocks instead of thousands."""

    _where: dict[Hashable, tuple[_Kind, int]] = field(default_factory=dict)
    _loose: dict[_Kind, list[Tensor]] = field(default_factory=dict)
    _packed: dict[_Kind, Tensor] = field(default_factory=dict)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._where

    def __getitem__(self, key: Hashable) -> Tensor:
        kind, row = self._where[key]
        return self._packed[kind][row] if kind in self._packed else self._loose[kind][row]

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a copy of `tensor` on the CPU under a new key."""
        if self._packed:
            raise ValueError("this store is packed; nothing can be added")
        kind = (tensor.shape, tensor.dtype)
        rows = self._loose.setdefault(kind, [])
        self._where[key] = (kind, len(rows))
        rows.append(tensor.detach().to("cpu", copy=True))

    def pack(self) -> None:
        """Stack the tensors of each shape; they are complete."""
        while self._loose:
            kind, rows = self._loose.popitem()
            self._packed[kind] = torch.stack(rows)
