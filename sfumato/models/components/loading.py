"""Fill modules that were built without memory, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sfumato.checkpoints.tensors import TensorReader
from sfumato.errors import UserError, guest_code
from sfumato.log import counted
from sfumato.nn.precision import computable, is_storage_only, widen_stored

Sizes = TypeVar("Sizes")


def shapes_of(file: TensorReader) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of an open file, by name."""
    return {name: file.shape(name) for name in file.keys()}  # noqa: SIM118 - a reader is no mapping


def check_names(path: Path, what: str, wanted: Collection[str], found: Collection[str]) -> None:
    """Raise UserError unless a file holds exactly the tensors that a model is made of.

    Args:
        path: the file, for the message.
        what: the model, e.g. "a T5 text encoder".
        wanted: the names that the model needs, as the file writes them.
        found: the file's names.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{path} lacks {counted(len(missing), 'tensor')} of {what}, {min(missing)} for one; "
            "download it again"
        )
    strange = [name for name in found if name not in wanted]
    if strange:
        example = f"{counted(len(strange), 'tensor')} that {what} has not, {min(strange)} for one"
        raise UserError(f"{path} holds {example}; use another file")


def sizes_of(path: Path, what: str, read: Callable[[], Sizes]) -> Sizes:
    """Return what `read` makes of a file's shapes, and what the libraries that it asks make of them.

    Raises:
        UserError: a tensor is missing (a KeyError), or the shapes are none of this model's.
    """
    try:
        with guest_code(f"{path} is not {what}", "use another file", passes=_is_missing):
            return read()
    except KeyError as missing:
        raise UserError(f"{path} lacks {missing.args[0]} and is not {what}; use another file") from None


def _is_missing(error: Exception) -> bool:
    return isinstance(error, KeyError)


def fill(
    module: nn.Module,
    path: Path,
    get: Callable[[str], Tensor],
    dtype: torch.dtype | None,
    device: torch.device,
    stored: Iterable[str] = (),
) -> nn.Module:
    """Give a module that was built on the meta device its weights; return it frozen and in eval mode.

    Args:
        path: the file, for messages.
        get: returns the tensor for a name of the module's state dict.
        dtype: of all floating-point tensors; if it is storage-only, of `stored` alone, the rest is bfloat16.
            None keeps each tensor's own, so that weights may stay in a file that is mapped into memory.
        stored: names of the weights that may be kept in a storage-only format.

    Raises:
        UserError: a tensor has another shape than the module expects.
    """
    eight_bit = set(stored) if dtype and is_storage_only(dtype) else set()
    for name, empty in module.state_dict().items():
        value = get(name)
        if value.shape != empty.shape:
            sizes = f"{tuple(value.shape)}, where the model's other tensors ask for {tuple(empty.shape)}"
            raise UserError(f"{path}: {name} is {sizes}; use another file")
        if dtype and value.dtype.is_floating_point:
            value = value.to(device, dtype if name in eight_bit else computable(dtype))
        _assign(module, name, value.to(device))
    widen_stored(module)
    return module.eval().requires_grad_(False)


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[leaf] = value
