"""The parts of a model at work one after the other, each on the device while it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from sfumato.models.interface.parts import Parts

Result = TypeVar("Result")


@dataclass(frozen=True)
class PartRunner:
    """Has parts work without gradients.

    Attributes:
        parts: where they are loaded; a part that is loaded already is used as it is.
        dtype: what to compute in; 16-bit types compute under autocast, whatever the weights are stored in.
        dtypes: parts that compute in another type.
        offload: keep only the part at work on the device.
        is_reused: with `offload`, whether parts wait in RAM for the next image; otherwise they are
            forgotten after use, and read from disk again should they be needed.
        on_load: called with a part's name and the part after each loading, to attach adapters.
    """

    parts: Parts
    dtype: torch.dtype
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    offload: bool = False
    is_reused: bool = False
    on_load: Callable[[str, nn.Module], None] | None = None

    def run(self, part: str, use: Callable[[nn.Module], Result]) -> Result:
        """Have `use` work with a part on the device; with offload, put the part away after it.

        `use` must not keep the part: its memory is wanted for the next one.
        """
        module = self._module(part)
        with torch.inference_mode(), _autocast(self.parts.device, self.dtypes.get(part, self.dtype)):
            result = use(module)
        del module
        if self.offload:
            self._put_away(part)
        return result

    def _module(self, part: str) -> nn.Module:
        """Return the part on the device, loaded outside inference mode so that it can be trained later."""
        is_new = part not in self.parts
        module = self.parts[part]
        if is_new and self.on_load:
            self.on_load(part, module)
        return self.parts.on_device(part)

    def _put_away(self, part: str) -> None:
        if self.is_reused:
            self.parts[part].to("cpu")
            self.parts.release()
        else:
            self.parts.release(part)


def _autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
