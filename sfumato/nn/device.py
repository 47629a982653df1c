"""Which device a run uses, and how the host reads from it without making it wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from sfumato.errors import UserError


def default_device() -> torch.device:
    """Return the fastest kind of device this machine has."""
    if torch.cuda.is_available():  # NVIDIA, and AMD through ROCm
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("cpu")


def device_named(name: str, option: str = "--device") -> torch.device:
    """Return the device of that name.

    Args:
        option: where the name was given, for the message.

    Raises:
        UserError: there is no such kind of device, or none of it here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"{option} is {name}, which this machine has not; use cpu") from None
    return torch.device(name)


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory of a graphics card is free, or None where nobody knows."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


_meant: ContextVar[str | None] = ContextVar("meant", default=None)


def kind_of(tensor: Tensor) -> str:
    """Return the kind of device that computes with a tensor; in a dry run, that which is meant."""
    if torch.compiler.is_compiling():  # never in a dry run, and a context variable would cut the graph
        return tensor.device.type
    return _meant.get() or tensor.device.type


@contextmanager
def standing_for(kind: str) -> Iterator[None]:
    """Let all tensors pass for ones of this kind of device in a `with` block."""
    token = _meant.set(kind)
    try:
        yield
    finally:
        _meant.reset(token)


class HostCopy:
    """A small tensor on its way to the host: copying begins now, and only reading waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event = None
        self._values = tensor
        if tensor.is_cuda:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values = host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> Tensor:
        """Return the tensor, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._values
