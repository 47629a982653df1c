"""Tensors on their way between RAM and a graphics card, so that the host seldom waits for the card.

A copy from or to ordinary memory waits until the card has done all that it was asked before. From pinned
memory a copy is queued like any other work; to pinned memory, too, but then whoever reads it has to wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Bytes of pinned memory through which tensors come to the host: one wait for as many as fit."""

_ALIGNMENT = 64

_Wanted = tuple[Tensor, torch.dtype]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor without making the host wait for the device's queue."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(wanted: Iterable[_Wanted]) -> Iterator[Tensor]:
    """Yield tensors in RAM, each in the dtype beside it, with few waits for the device.

    Those that are there already in that dtype are yielded as they are.
    """
    for chunk in _chunks(wanted):
        if len(chunk) == 1:
            tensor, dtype = chunk[0]
            yield tensor.detach().to("cpu", dtype)
        else:
            yield from _fetched(chunk)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in RAM, which do not change when the tensors do."""
    fetched = to_host((tensor, tensor.dtype) for tensor in tensors.values())
    pairs = zip(tensors.items(), fetched, strict=True)
    return {name: here.clone() if live.device.type == "cpu" else here for (name, live), here in pairs}


def _chunks(wanted: Iterable[_Wanted]) -> Iterator[list[_Wanted]]:
    """Yield what is fetched together: tensors of a card that fit into `CHUNK_BYTES`, or any one tensor."""
    chunk: list[_Wanted] = []
    left = CHUNK_BYTES
    for tensor, dtype in wanted:
        room = _room(tensor, dtype) if tensor.is_cuda else CHUNK_BYTES
        if chunk and room > left:
            yield chunk
            chunk, left = [], CHUNK_BYTES
        chunk.append((tensor, dtype))
        left -= room
        if left <= 0:  # at once: the next tensor may not be made yet
            yield chunk
            chunk, left = [], CHUNK_BYTES
    if chunk:
        yield chunk


def _fetched(chunk: Sequence[_Wanted]) -> Iterator[Tensor]:
    staging = torch.empty(sum(_room(*each) for each in chunk), dtype=torch.uint8, pin_memory=True)
    places = []
    for (tensor, dtype), piece in zip(chunk, staging.split([_room(*each) for each in chunk]), strict=True):
        place = piece[: tensor.numel() * dtype.itemsize].view(dtype).view(tensor.shape)
        places.append(place.copy_(tensor.detach(), non_blocking=True))
    for device in {tensor.device for tensor, _ in chunk}:
        torch.cuda.current_stream(device).synchronize()
    for place in places:
        yield place.clone()


def _room(tensor: Tensor, dtype: torch.dtype) -> int:
    return -(-tensor.numel() * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
