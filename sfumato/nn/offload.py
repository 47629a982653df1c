"""Block swap: some of a model's blocks wait in RAM and come to the device when their turn comes.

Every block that travels has one flat buffer in RAM, and two flat slots on the device take turns in
holding one. While one block computes, the next is on its way into the other slot: the order in which blocks
are used is known, forward, back again where gradients are taken, and from the start where not. A frozen
block is never copied back; a trained one is, once its gradients are known.

What adapters add to a block's layers is none of its own weights and stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.nn import checkpointing
from sfumato.nn.copy_stream import Carrier, Moment

SLOTS = 2
_ALIGNMENT = 64
"""Bytes; every tensor of a block begins at a multiple, as kernels like it."""
_PIECES = 4
"""A block counts as so many pieces of the largest one, to the nearest."""


def most_swapped(sizes: Sequence[int]) -> int:
    """Return the largest number that `choose` takes for blocks of these sizes; below 1 if it takes none."""
    return sum(_pieces(sizes)) // _PIECES - SLOTS


def choose(sizes: Sequence[int], num: int) -> list[int]:
    """Return which blocks travel, so that the device holds about `num` times the largest block less.

    Smaller blocks count as 1/4, 1/2 or 3/4 of one; those below 1/8 stay, for their journey would free next to
    nothing. The slots take two blocks' place, so as much more travels than is saved. The blocks are spread
    over the model: one can be copied while several compute.

    Args:
        sizes: the weights of each block, in execution order.
        num: 1 to `most_swapped(sizes)`.
    """
    if not 1 <= num <= most_swapped(sizes):
        raise ValueError(f"{num} is not within 1 and {most_swapped(sizes)}")
    pieces, chosen, owed = _pieces(sizes), [], 0
    for index, own in enumerate(pieces):
        owed += own * _PIECES * (num + SLOTS)
        if own and owed > 0:
            chosen.append(index)
            owed -= own * sum(pieces)
    return chosen


def _pieces(sizes: Sequence[int]) -> list[int]:
    return [round(_PIECES * size / max(sizes)) for size in sizes]


def size_of(block: nn.Module) -> int:
    """Return the bytes of a block's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in own_tensors(block))


def move_others(model: nn.Module, travelling: Iterable[nn.Module], device: torch.device) -> None:
    """Bring the weights of a model to `device`, but for those of blocks that travel."""
    waiting = {id(tensor) for block in travelling for tensor in own_tensors(block)}
    for tensor in own_tensors(model):
        if id(tensor) not in waiting:
            tensor.data = tensor.data.to(device)


def buffer_bytes(block: nn.Module) -> int:
    """Return the bytes of a flat buffer that holds a block."""
    return _Layout.of(block).num_bytes


def own_tensors(module: nn.Module) -> list[Tensor]:
    """Return a module's parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


class BlockSwap:
    """Lets blocks of one model take turns on the device, from now on.

    Weights of these blocks may change only in `after_backward`, or between a gradient's arrival and that, or
    after `recall`. Before others read them, call `settle` or `recall`.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        carrier: Carrier,
        after_backward: Callable[[nn.Module], None] | None = None,
    ) -> None:
        """Take the blocks' weights into RAM.

        Args:
            blocks: those that travel, in execution order.
            carrier: to and from the device that computes.
            after_backward: told each trained block once all its gradients are known and before its weights
                are copied back: the one occasion to change them.
        """
        self._carrier = carrier
        self._after_backward = after_backward
        layouts = [_Layout.of(block) for block in blocks]
        sizes = [layout.num_bytes for layout in layouts]
        self._slots = [_Slot(carrier.slot(max(sizes, default=0)), carrier.mark()) for _ in range(SLOTS)]
        self._blocks = [_Traveller(layout, carrier, self._slots) for layout in layouts]
        self._turn: list[int] = []  # blocks of the last forward pass that gradients will come back through
        self._latest = -1
        self._clock = count(1)
        for index, block in enumerate(self._blocks):
            self._attach(index, block.module)
        self._fill(range(len(self._blocks)))

    @property
    def num_bytes(self) -> int:
        """Bytes that wait in RAM, every block's."""
        return sum(block.num_bytes for block in self._blocks)

    @property
    def slot_bytes(self) -> int:
        """Bytes that the slots take on the device."""
        return sum(slot.buffer.numel() for slot in self._slots)

    def settle(self) -> None:
        """Return when no copy is under way, so that weights can be read wherever they are."""
        self._carrier.settle()

    def recall(self) -> None:
        """Let every block's weights be those in RAM, where others may read and change them."""
        self._carrier.settle()
        for slot in self._slots:
            if slot.block is not None:
                self._blocks[slot.block].move_home()
            slot.block, slot.free = None, None
            slot.arrival.clear()

    def _attach(self, index: int, block: nn.Module) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return self._before(index, args, kwargs)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            self._after(index, output)

        block.register_forward_pre_hook(before, with_kwargs=True)
        block.register_forward_hook(after, always_call=True)

    def _before(self, index: int, args: Any, kwargs: Any) -> Any:
        if index <= self._latest:
            self._turn.clear()
        self._latest = index
        self._bring(index)
        block = self._blocks[index]
        if not torch.is_grad_enabled():
            return None
        if not checkpointing.is_enabled(block.module):
            block.keep(lambda tensor: self._pack(index, tensor), self._unpack)
        if block.is_trained and not any(map(_has_history, _tensors((args, kwargs)))):
            args, kwargs = _with_history(args, kwargs)
        _tell_once(filter(_has_history, _tensors((args, kwargs))), lambda: self._backward_ends(index))
        return args, kwargs

    def _after(self, index: int, output: Any) -> None:
        self._blocks[index].keep_no_more()
        if output is not None and not any(True for _ in _tensors(output)):
            raise ValueError(f"a block that travels must return tensors, not a {type(output).__name__}")
        with_gradients = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        if torch.is_grad_enabled() and with_gradients:
            self._turn.append(index)
            _tell_once(with_gradients, lambda: self._bring(index))
        turn = reversed(self._turn) if torch.is_grad_enabled() else ()
        self._leave(index, chain(range(index + 1, len(self._blocks)), turn, range(len(self._blocks))))

    def _backward_ends(self, index: int) -> None:
        block, slot = self._blocks[index], self._slot_of(index)
        if block.is_trained and slot is not None:
            if self._after_backward is not None:
                self._after_backward(block.module)
            self._carrier.copy(block.host, slot.buffer[: block.num_bytes], self._carrier.mark())
        rest = [other for other in reversed(self._turn) if other < index]
        self._leave(index, chain(rest, range(len(self._blocks))))

    def _bring(self, index: int) -> None:
        """Let the computation that follows have a block's weights."""
        slot = self._slot_of(index)
        if slot is None:  # nobody foresaw it
            slot = min(self._slots, key=lambda slot: slot.used)
            self._load(slot, index)
        if slot.arrival:
            self._carrier.wait(slot.arrival[0])
            slot.arrival.clear()
            self._blocks[index].move_to(self._slots.index(slot))
        slot.free, slot.used = None, next(self._clock)

    def _leave(self, index: int, ahead: Iterable[int]) -> None:
        """Note that a block's weights are not needed after what has been computed so far."""
        slot = self._slot_of(index)
        if slot is not None:
            slot.free = self._carrier.mark()
        self._fill(ahead)

    def _fill(self, ahead: Iterable[int]) -> None:
        """Begin to load what is needed soonest, where nothing lies that is needed sooner."""
        wanted = list(islice(dict.fromkeys(ahead), SLOTS))
        idle = [slot for slot in self._slots if slot.block not in wanted]
        missing = [index for index in wanted if self._slot_of(index) is None]
        for slot, index in zip(idle, missing, strict=False):
            self._load(slot, index)

    def _load(self, slot: _Slot, index: int) -> None:
        if slot.block is not None:
            self._blocks[slot.block].move_home()
        block = self._blocks[index]
        free = self._carrier.mark() if slot.free is None else slot.free
        slot.arrival = [self._carrier.copy(slot.buffer[: block.num_bytes], block.host, free)]
        slot.block = index

    def _slot_of(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block == index), None)

    def _pack(self, index: int, tensor: Tensor) -> Tensor | _Place:
        """Keep for the backward pass where a weight lies in its block instead of what lies there now."""
        slot = self._slot_of(index)
        if slot is None or tensor.untyped_storage().data_ptr() != slot.buffer.untyped_storage().data_ptr():
            return tensor
        return _Place(index, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, kept: Tensor | _Place) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        self._bring(kept.block)
        slot = self._slot_of(kept.block)
        assert slot is not None
        return slot.buffer.view(kept.dtype).as_strided(kept.size, kept.stride, kept.offset)


@dataclass(eq=False)
class _Slot:
    """One of the two places on the device.

    Attributes:
        free: the moment from which on it may be overwritten; None while its block is needed.
        block: which block it holds or is about to hold.
        arrival: the moment from which on it holds it, until somebody has waited for it.
        used: when its block was last needed, on a clock of uses.
    """

    buffer: Tensor
    free: Moment
    block: int | None = None
    arrival: list[Moment] = field(default_factory=list)
    used: int = 0


@dataclass(frozen=True)
class _Place:
    """A piece of a block's weights, wherever the block is: size, stride and offset count elements."""

    block: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Layout:
    """Where each tensor of a block lies in a flat buffer; offsets in bytes."""

    module: nn.Module
    tensors: list[Tensor]
    offsets: list[int]
    num_bytes: int

    @classmethod
    def of(cls, module: nn.Module) -> _Layout:
        tensors = own_tensors(module)
        offsets, end = [], 0
        for tensor in tensors:
            offsets.append(end)
            end += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        return cls(module, tensors, offsets, end)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Return the tensors as they lie in a buffer, with the order of dimensions that they have."""
        return [
            buffer[offset : offset + tensor.numel() * tensor.element_size()]
            .view(tensor.dtype)
            .as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride())
            for tensor, offset in zip(self.tensors, self.offsets, strict=True)
        ]


class _Traveller:
    """A block that waits in RAM, and its weights as they lie there and in each slot."""

    def __init__(self, layout: _Layout, carrier: Carrier, slots: Sequence[_Slot]) -> None:
        self.module = layout.module
        self.num_bytes = layout.num_bytes
        self.host = carrier.host(layout.num_bytes)
        self._tensors = layout.tensors
        self._at_home = layout.views(self.host)
        self._in_slots = [layout.views(slot.buffer) for slot in slots]
        self._hooks: list[torch.autograd.graph.saved_tensors_hooks] = []
        for tensor, view in zip(self._tensors, self._at_home, strict=True):
            view.copy_(tensor.detach())
        self.move_home()

    @property
    def is_trained(self) -> bool:
        """Whether any of its weights is."""
        return any(tensor.requires_grad for tensor in self._tensors)

    def move_home(self) -> None:
        """Let its weights be those in RAM."""
        self._show(self._at_home)

    def move_to(self, slot: int) -> None:
        """Let its weights be those in a slot."""
        self._show(self._in_slots[slot])

    def keep(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
        """Treat what autograd keeps of it in this way until `keep_no_more`."""
        self._hooks.append(torch.autograd.graph.saved_tensors_hooks(pack, unpack))
        self._hooks[-1].__enter__()

    def keep_no_more(self) -> None:
        """Let autograd keep tensors as ever."""
        while self._hooks:
            self._hooks.pop().__exit__()

    def _show(self, views: Sequence[Tensor]) -> None:
        for tensor, view in zip(self._tensors, views, strict=True):
            tensor.data = view


def _tell_once(tensors: Iterable[Tensor], tell: Callable[[], None]) -> None:
    """Call `tell` when the backward pass reaches the first of `tensors`.

    Autograd computes in the exact reverse order of the forward pass. So whatever was computed after the
    latest of these tensors has had its backward pass by then, and whatever was computed before has not.
    A hook changes nothing in the graph: gradients are summed in the order in which they always are.
    """
    untold = [tell]

    def reached(_: Tensor) -> None:
        while untold:
            untold.pop()()

    for tensor in tensors:
        tensor.register_hook(reached)


def _has_history(tensor: Tensor) -> bool:
    return tensor.grad_fn is not None


def _with_history(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let the first tensor of numbers be one that gradients come back to, and the values be the same."""
    named = {**dict(enumerate(args)), **kwargs}
    for name, value in named.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            leaf = value if value.requires_grad else value.detach().requires_grad_()
            named[name] = leaf.view_as(leaf)
            break
    return tuple(named[i] for i in range(len(args))), {name: named[name] for name in kwargs}


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
