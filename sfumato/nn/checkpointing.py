"""Gradient checkpointing: keep only what enters a block and compute the rest again (Chen et al. 2016).

It replaces a block's `forward`, not its call: hooks on the block, such as those that bring swapped weights
in, run around it once per forward pass. The second computation sees the random numbers and the autocast of
the first. What enters a block can be kept in RAM, at the price of carrying it there and back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from sfumato.nn.device import kind_of


def enable(blocks: Iterable[nn.Module], *, offload: bool = False) -> None:
    """Checkpoint each of `blocks`; a block that is checkpointed already stays as it is.

    Args:
        offload: keep the tensors that are a block's positional arguments in RAM.
    """
    for block in blocks:
        if not is_enabled(block):
            block.forward = partial(_recomputed, block.forward, offload)


def disable(blocks: Iterable[nn.Module]) -> None:
    """Give each of `blocks` its own forward back."""
    for block in blocks:
        forward = block.forward
        if isinstance(forward, partial) and is_enabled(block):
            block.forward = forward.args[0]


def is_enabled(block: nn.Module) -> bool:
    """Return whether `block` is checkpointed."""
    return isinstance(block.forward, partial) and block.forward.func is _recomputed


def _recomputed(forward: Callable[..., Any], offload: bool, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # These hooks see what the checkpoint keeps; what the block keeps meets the checkpoint's own.
    with saved_tensors_hooks(_Away, _Away.back) if offload else nullcontext():
        return checkpoint(forward, *args, use_reentrant=False, context_fn=_same_draws, **kwargs)


def _same_draws() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Let Python's own generator draw the same the second time; PyTorch sees to its generators itself."""
    return nullcontext(), _drawing_from(random.getstate())


@contextmanager
def _drawing_from(state: tuple[Any, ...]) -> Iterator[None]:
    now = random.getstate()
    random.setstate(state)
    try:
        yield
    finally:
        random.setstate(now)


class _Away:
    """A tensor's copy in RAM; from a graphics card it is made beside the computation."""

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        self._copied = None
        with torch.no_grad():
            self.values = torch.empty_like(tensor, device="cpu", pin_memory=kind_of(tensor) == "cuda")
            if tensor.is_cuda:
                self._carry(tensor)
            else:
                self.values.copy_(tensor)

    def back(self) -> Tensor:
        """Return the tensor where it was."""
        if self._copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied)
        # Only a card of CUDA's keeps the source until it is copied.
        return self.values.to(self.device, non_blocking=self._copied is not None, copy=True)

    def _carry(self, tensor: Tensor) -> None:
        stream = _stream_of_copies(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            self.values.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)  # its memory is not given to others before it is copied
        self._copied = stream.record_event()


@cache
def _stream_of_copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
