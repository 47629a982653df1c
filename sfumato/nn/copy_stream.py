"""Bytes on their way between RAM and a device, beside the computation.

This is all that block swap asks of a device. A copy is begun, and its end is a moment that the computation
can be told to wait for; the host waits for nothing. Buffers are flat and of bytes, so that one copy moves
everything that travels together.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Moment = Any
"""A point in a device's work; only the carrier that made it can read it."""

_POISON = 0xFF
"""Makes not-a-number of every format: float32, bfloat16, float16 and both 8-bit formats."""


class Carrier(Protocol):
    """Moves bytes between RAM and one device; copies are made in the order they were begun in."""

    def host(self, num_bytes: int) -> Tensor:
        """Return an uninitialised buffer in RAM, (num_bytes,) uint8, pinned if possible."""
        ...

    def slot(self, num_bytes: int) -> Tensor:
        """Return an uninitialised buffer on the device, (num_bytes,) uint8."""
        ...

    def mark(self) -> Moment:
        """Return the moment at which everything that has been asked to be computed is done."""
        ...

    def copy(self, target: Tensor, source: Tensor, after: Moment) -> Moment:
        """Begin to copy once the moment `after` has come; return the moment at which it is done."""
        ...

    def wait(self, moment: Moment) -> None:
        """Let all that is computed from now on wait for `moment`."""
        ...

    def settle(self) -> None:
        """Return when all copies are done, so that the host may read the buffers."""
        ...


def carrier_for(device: torch.device) -> Carrier:
    """Return what carries to and from `device`."""
    return CudaCarrier(device) if device.type == "cuda" else SerialCarrier(device)


class CudaCarrier:
    """Copies on a stream of its own, from and to pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pins = True

    def host(self, num_bytes: int) -> Tensor:
        """Return a buffer in RAM; where no more can be pinned, an ordinary one."""
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
        if self._pins and not _pin(buffer):
            self._pins = False
            logger.warning(
                "no more of the RAM can be pinned here (WSL2, for one, allows half of it); "
                "the other blocks travel from ordinary memory: the same numbers, slower copies"
            )
        return buffer

    def slot(self, num_bytes: int) -> Tensor:
        """Return a buffer on the device."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def mark(self) -> Moment:
        """Return an event on the stream that computes."""
        return torch.cuda.current_stream(self._device).record_event()

    def copy(self, target: Tensor, source: Tensor, after: Moment) -> Moment:
        """Queue a copy on the stream of copies; return an event on it."""
        self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def wait(self, moment: Moment) -> None:
        """Let the stream that computes wait."""
        torch.cuda.current_stream(self._device).wait_event(moment)

    def settle(self) -> None:
        """Wait for the stream of copies."""
        self._stream.synchronize()


class SerialCarrier:
    """Copies on devices without streams, the processor above all.

    A copy is made only when it is waited for; until then its target holds no numbers. Whoever computes with
    a buffer too early therefore sees it in the result.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: tuple[Tensor, Tensor] | None = None

    def host(self, num_bytes: int) -> Tensor:
        """Return a buffer in RAM."""
        return torch.empty(num_bytes, dtype=torch.uint8)

    def slot(self, num_bytes: int) -> Tensor:
        """Return a buffer on the device."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def mark(self) -> Moment:
        """Return nothing: what was asked to be computed is computed."""

    def copy(self, target: Tensor, source: Tensor, after: Moment) -> Moment:
        """Remember what to copy, and make the target unusable until then."""
        self.settle()
        target.fill_(_POISON)
        self._begun = (target, source)

    def wait(self, moment: Moment) -> None:
        """Make the copy that was begun."""
        self.settle()

    def settle(self) -> None:
        """Make the copy that was begun."""
        if self._begun is not None:
            target, source = self._begun
            target.copy_(source)
            self._begun = None


def _pin(buffer: Tensor) -> bool:
    """Pin a buffer for as long as the process lives; return whether that was possible.

    PyTorch's own pinned memory comes in powers of two: blocks of 680 MB would take a gigabyte each.
    """
    runtime: Any = torch.cuda.cudart()
    if int(runtime.cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0)) == 0:
        return True
    try:
        torch.zeros(1, device="cuda")  # the driver reports a refusal once more, to whoever asks next
    except RuntimeError as error:
        logger.debug("pinning was refused: %s", error)
    return False
