"""The parts of one run's model, loaded one at a time, when first asked for."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from sfumato.models.interface.family import Family

logger = logging.getLogger(__name__)


class PartChange(Protocol):
    """What is done to each part right after it has been loaded."""

    def __call__(self, part: str, module: nn.Module, device: torch.device) -> None:
        """Change a part in place.

        Args:
            device: the one that will compute with it; the part itself may lie in RAM.
        """
        ...

    def mark(self, part: str) -> str:
        """Return what tells a changed part from others, for caches; "" if it is as it was."""
        ...


Placing = Callable[[nn.Module], None]
"""Brings a part that was loaded into RAM to the device, or as much of it as is to be there."""


@dataclass
class Parts:
    """The parts of one run's model, loaded when first asked for.

    Attributes:
        dtypes: storage dtype by part; a part that is not listed takes float32.
        change: what is done to a part that was loaded, or None.
        keeps_memory: do not hand the memory of released parts back to the device.
        placed: parts that are loaded into RAM, and what brings them to the device from there.
        devices: parts that stay on a device of their own.
        loaded: names of all parts that were ever loaded, in order.
    """

    family: Family
    device: torch.device
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    change: PartChange | None = None
    keeps_memory: bool = False
    placed: Mapping[str, Placing] = field(default_factory=dict)
    devices: Mapping[str, torch.device] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    _modules: dict[str, nn.Module] = field(default_factory=dict)

    def __getitem__(self, part: str) -> nn.Module:
        if part not in self._modules:
            logger.info("loading %s from %s", part, self.family.source(part))
            place = self.placed.get(part)
            home = self.devices.get(part, self.device) if place is None else torch.device("cpu")
            module = self.family.load(part, self.dtypes.get(part, torch.float32), home)
            if self.change is not None:
                self.change(part, module, self.device)
            if place is not None:
                place(module)
            self._modules[part] = module
            self.loaded.append(part)
        return self._modules[part]

    def __contains__(self, part: str) -> bool:
        return part in self._modules

    def on_device(self, part: str) -> nn.Module:
        """Return a part ready to compute, wherever it was put meanwhile; a placed one stays where it is."""
        module = self[part]
        return module if part in self.placed else module.to(self.devices.get(part, self.device))

    def mark(self, part: str) -> str:
        """Return what tells a part that is changed after loading from others; "" if it is not changed."""
        return self.change.mark(part) if self.change is not None else ""

    def release(self, *parts: str) -> None:
        """Forget these parts, so that their memory can be used for something else."""
        for part in parts:
            self._modules.pop(part, None)
        gc.collect()
        if self.device.type == "cuda" and not self.keeps_memory:
            torch.cuda.empty_cache()
