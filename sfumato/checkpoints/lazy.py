"""Tensors on their way into a file: made one by one, cast, and looked at before they are written."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from sfumato.checkpoints.finite import is_finite, largest
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.transfer import to_host

logger = logging.getLogger(__name__)

_FORMATS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "float"}
"""What files are written in, from the smallest range to the largest, as options name it."""
_NO_NUMBERS = "holds values that are no numbers (NaN or inf)"


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when its turn to be written comes.

    Attributes:
        dtype: what it is written in, whatever `load` returns.
        load: makes it.
        is_foreign: no weight of the model that is written: it keeps its dtype.
        is_copy: whether its values are those of a file, as they are: what is no number there stays.
        sources: what it is computed from, by the names of the files that hold it; for messages.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]
    is_foreign: bool = False
    is_copy: bool = False
    sources: Mapping[str, LazyTensor] = field(default_factory=dict)

    @classmethod
    def of(cls, tensor: Tensor, *, is_copy: bool = False) -> LazyTensor:
        """Return a tensor that is there already."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor, is_copy=is_copy)

    @classmethod
    def foreign(cls, value: Tensor) -> LazyTensor:
        """Return a tensor of a file that is no weight of the model."""
        return cls(value.dtype, tuple(value.shape), lambda: value, is_foreign=True, is_copy=True)

    def changed(self, change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """Return what `change` makes of the tensor when it is written: other rows, or another shape."""
        shape = tuple(change(torch.empty(self.shape, device="meta")).shape)
        sources = {name: source.changed(change) for name, source in self.sources.items()}
        return replace(self, shape=shape, load=lambda: change(self.load()), sources=sources)

    @classmethod
    def joined(cls, tensors: Sequence[LazyTensor]) -> LazyTensor:
        """Return tensors joined along their first dimension when they are written, made one after the other.

        Where some were computed and some are copies, all take the dtype of what was computed.
        """
        first = tensors[0]
        if len(tensors) == 1:
            return first
        dtype = next((tensor.dtype for tensor in tensors if not tensor.is_copy), first.dtype)
        names = {name: None for tensor in tensors for name in tensor.sources}
        return cls(
            dtype,
            (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:]),
            lambda: _joined(tensors, dtype),
            is_copy=all(tensor.is_copy for tensor in tensors),
            sources={name: cls.joined([t.sources.get(name, t) for t in tensors]) for name in names},
        )


def _joined(tensors: Sequence[LazyTensor], dtype: torch.dtype) -> Tensor:
    made = [tensor.load() for tensor in tensors]
    return torch.cat([each.to(made[0].device, dtype) for each in made])


AnyTensor = Tensor | LazyTensor


def loaded(tensor: AnyTensor) -> Tensor:
    """Return a tensor, made if it is not yet there."""
    return tensor.load() if isinstance(tensor, LazyTensor) else tensor


def finite(
    path: Path, tensors: Mapping[str, AnyTensor], dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Make each tensor of a file that is to be written: on the CPU, and in its format.

    What a file holds and is only copied may be broken, for such files are to be looked at and repaired. That
    is a warning, once all is made.

    Args:
        path: the file, for messages.
        dtype: what to cast floating-point weights to; None keeps each tensor's own.

    Raises:
        UserError: a value that was computed is no number, or is too large for the format.
    """
    broken = []
    made: deque[tuple[str, AnyTensor, Tensor]] = deque()

    def wanted() -> Iterator[tuple[Tensor, torch.dtype]]:
        for name, tensor in tensors.items():
            made.append((name, tensor, loaded(tensor)))
            yield made[-1][2], written_as(tensor, dtype)

    for ready in to_host(wanted()):
        name, tensor, value = made.popleft()
        if not _holds(ready, value):
            _judge(path, name, tensor, value, ready.dtype)
            broken.append(name)
        del value  # before the next one is made
        yield name, ready
    if broken:
        number = counted(len(broken), "tensor holds", "tensors hold")
        logger.warning(
            "%s: %s values that are no numbers, copied as they are (%s ...)", path, number, broken[0]
        )


def written_as(tensor: AnyTensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the format that a tensor is written in, where floating-point weights are cast to `dtype`."""
    is_foreign = isinstance(tensor, LazyTensor) and tensor.is_foreign
    return dtype if dtype and tensor.dtype.is_floating_point and not is_foreign else tensor.dtype


def _holds(ready: Tensor, value: Tensor) -> bool:
    """Return whether a tensor that was cast has all values of the one before, and these are numbers."""
    if ready.itemsize > 1 or ready.dtype == value.dtype or not ready.is_floating_point():
        return is_finite(ready)
    # What is too large for 8 bits, infinity included, becomes their largest number.
    info = torch.finfo(ready.dtype)
    half_step = 2 ** math.floor(math.log2(info.max)) * info.eps / 2
    return largest(value) <= info.max + half_step


def _judge(path: Path, name: str, tensor: AnyTensor, value: Tensor, dtype: torch.dtype) -> None:
    """Say why a tensor is not to be written, unless it is a copy of what is broken itself."""
    start = f"{path} is not written: {name}"
    if is_finite(value):
        most = largest(value)
        wide = next(name for wide, name in _FORMATS.items() if torch.finfo(wide).max >= most)
        raise UserError(f"{start} reaches {most:.4g}, too large for {_named(dtype)}; save it in {wide}")
    if isinstance(tensor, LazyTensor):
        if tensor.is_copy:
            return
        for source, original in tensor.sources.items():
            if not is_finite(original.load()):
                raise UserError(f"{start} {_NO_NUMBERS}, as in {source}; use another file")
        if tensor.sources:
            raise UserError(
                f"{start} grows too large for {_named(value.dtype)} (NaN or inf); compute in float, or give "
                "smaller ratios"
            )
    raise UserError(f"{start} {_NO_NUMBERS}; look at what it was made from")


def _named(dtype: torch.dtype) -> str:
    return _FORMATS.get(dtype, str(dtype).removeprefix("torch."))
