"""Run without numbers: every tensor has a shape and a size but no memory, and the sizes are added up.

What runs is the code that trains, and what is counted is each tensor from its making to its release. So the
count holds for whatever that code does: checkpointing, autocast, an optimizer's temporary copies. Beyond it
are only the buffers that kernels take for themselves and the room between blocks of an allocator.

Tensors without numbers pretend to be a processor's, so that this works wherever PyTorch does. Where the run
is meant for another device, autocast widens what it widens there, and a processor's shortcuts are not taken.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from sfumato.nn import device

DEVICE = torch.device("cpu")
"""Where tensors without numbers say that they are."""

WIDENED = (
    *("layer_norm", "group_norm", "softmax.int", "log_softmax.int", "exp", "log", "rsqrt", "cumsum"),
    *("sum", "sum.dim_IntList", "pow.Tensor_Scalar", "pow.Tensor_Tensor"),
)
"""What autocast computes in float32 on a graphics card but not on a processor, of what models here use."""

_KNOWN_NUMBERS = 16
"""Up to how many numbers a tensor that is written down in code may have and still be known."""

_COMPLAINTS = (
    *("meta tensor", "device meta", "meta device", "register_meta"),
    *("incompatible tensor type", "not supported for tensor subclasses"),
)
"""What PyTorch says to those who ask a tensor without numbers for numbers, or put it where numbers were."""

_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


class Tally(TorchDispatchMode):
    """Add up the bytes of tensors that are made while it is active, for as long as they live.

    It counts real tensors just as well as those without numbers. Memory that several tensors share counts
    once.

    Attributes:
        live: bytes that are held now.
        peak: the most that were held at a time since it was last set.
        host: the same as `peak` for pinned memory, which is not the device's.
    """

    def __init__(self, within_s: float = math.inf) -> None:
        """Begin to count; after so many seconds, computing is an error."""
        super().__init__()
        self._end_s = time.monotonic() + within_s
        self.live = self.peak = self.host = self._host_live = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute, then note what memory is new."""
        if time.monotonic() > self._end_s:
            raise _OutOfTime
        kwargs = dict(kwargs or {})
        is_host = bool(kwargs.pop("pin_memory", False))
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage(), is_host)
        return result

    def _note(self, storage: torch.UntypedStorage, is_host: bool) -> None:
        key = id(storage)
        if key in self._known:
            return
        num_bytes = storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key, num_bytes, is_host))
        if is_host:
            self._host_live += num_bytes
            self.host = max(self.host, self._host_live)
        else:
            self.live += num_bytes
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int, num_bytes: int, is_host: bool) -> None:
        del self._known[key]
        if is_host:
            self._host_live -= num_bytes
        else:
            self.live -= num_bytes


class _Unread(TorchDispatchMode):
    """Answer whoever reads a number that is not known: it is 1."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        # Modules change the dtype of no parameter that somebody refers to, and these memos do.
        self._memos = mode.fake_tensor_converter.meta_converter.tensor_memo

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not _is_known(args[0]):
            return _one(args[0].dtype)
        result = func(*args, **(kwargs or {}))
        self._memos.clear()
        return result


class _Files(TorchFunctionMode):
    """Let safetensors lay tensors over the bytes of a file; whoever computes with them gets no numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with with_numbers() if func in (torch.asarray, torch.frombuffer) else nullcontext():
            return func(*args, **(kwargs or {}))


def _is_known(tensor: Tensor) -> bool:
    """Return whether a tensor is a number that the code itself wrote down."""
    return not isinstance(tensor, FakeTensor) or tensor.constant is not None


def _one(dtype: torch.dtype) -> bool | int | float:
    if dtype is torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


@contextmanager
def _graphics_autocast() -> Iterator[None]:
    """Let autocast widen what it widens on a graphics card, in backward passes, too."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in WIDENED:
            library.impl(name, partial(_compute_widened, name), "AutocastCPU")
        yield


def _compute_widened(name: str, *args: Any, **kwargs: Any) -> Any:
    packet, _, overload = name.partition(".")
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
        return operation(*map(_widened, args), **{key: _widened(value) for key, value in kwargs.items()})


def _widened(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value


@contextmanager
def without_numbers(kind: str, within_s: float = math.inf) -> Iterator[Tally]:
    """Let tensors be without numbers in a `with` block; those that are there already may be used.

    Args:
        kind: of the device that is meant, e.g. "cuda" or "cpu".
        within_s: seconds after which the next tensor that is made ends the block.

    Raises:
        TimeoutError: it took longer.
    """
    with (
        _in_time(),
        warnings.catch_warnings(),
        device.standing_for(kind),
        _small_tensors_known(),
        _no_log(),
        _Files(),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        _Unread(mode),
        Tally(within_s) as tally,
        nullcontext() if kind == DEVICE.type else _graphics_autocast(),
    ):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        yield tally


class _OutOfTime(BaseException):
    """The time is over; no Exception, so that it goes through whatever takes care of these."""


@contextmanager
def _in_time() -> Iterator[None]:
    try:
        yield
    except _OutOfTime:
        raise TimeoutError("it takes too long") from None


@contextmanager
def with_numbers() -> Iterator[None]:
    """Let tensors that are made in a `with` block have numbers again, those of files above all."""
    with _disable_current_modes():
        yield


def has_numbers(tensor: Tensor) -> bool:
    """Return whether a tensor can be read."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def lacks_numbers(error: BaseException) -> bool:
    """Return whether an error says only that somebody asked for numbers where there are none."""
    is_own = type(error).__module__ == fake_tensor.__name__
    return is_own or any(complaint in str(error) for complaint in _COMPLAINTS)


@contextmanager
def _small_tensors_known() -> Iterator[None]:
    """Let code calculate with sizes in tensors: those of a kernel, for one."""
    limit = fake_tensor.CONSTANT_NUMEL_LIMIT
    fake_tensor.CONSTANT_NUMEL_LIMIT = _KNOWN_NUMBERS
    try:
        yield
    finally:
        fake_tensor.CONSTANT_NUMEL_LIMIT = limit


@contextmanager
def _no_log() -> Iterator[None]:
    """Keep PyTorch from logging a stack trace of an error that it raises as well."""
    logger = logging.getLogger(fake_tensor.__name__)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def empty_like(module: nn.Module) -> nn.Module:
    """Let a module's weights be without numbers; weights that are one stay one. Return the module."""
    known: dict[int, Tensor] = {}
    for owner in module.modules():
        _replace(owner._parameters, lambda old: nn.Parameter(_empty(old), old.requires_grad), known)
        _replace(owner._buffers, _empty, known)
    return module


def _replace(tensors: Any, make: Callable[[Any], Tensor], known: dict[int, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            tensors[name] = known.setdefault(id(tensor), make(tensor))


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device=DEVICE)
