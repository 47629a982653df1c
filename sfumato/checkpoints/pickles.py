"""Old checkpoint files (.ckpt, .pt, .bin), read and written as named tensors, never as code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.header import DTYPES
from sfumato.checkpoints.lazy import AnyTensor, finite
from sfumato.errors import UserError, guest_code

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickled checkpoint, without running any code that it may contain.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    return _tensors_of(path, _content(path))


def read_counters(path: Path) -> dict[str, int]:
    """Return the whole numbers that a pickled checkpoint holds beside its tensors: epoch, global_step ...

    A file that is not pickled has none.

    Raises:
        UserError: as `read_pickle` says.
    """
    if path.suffix.lower() not in SUFFIXES:
        return {}
    content = _content(path)
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, int)}


def write_pickle(
    path: Path,
    tensors: Mapping[str, AnyTensor],
    counters: Mapping[str, int] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors as a pickled dictionary; such files carry no metadata.

    Args:
        dtype: what to cast floating-point tensors to; None keeps each tensor's own.
        counters: whole numbers to write beside the tensors, which then lie in an entry `state_dict`, as
            training frameworks have it.

    Raises:
        UserError: as `write_tensors` says.
    """
    plain: dict[str, Any] = dict(finite(path, tensors, dtype))
    size_bytes = sum(tensor.nbytes for tensor in plain.values())
    with atomic_file(path, size_bytes) as file:
        torch.save(plain if counters is None else {"state_dict": plain, **counters}, file)


def _content(path: Path) -> Any:
    try:
        with guest_code(f"{path} is damaged or not a checkpoint", "download it again", passes=_is_told_apart):
            return _load(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors and could run code, so it is not loaded; use safetensors"
        ) from None


def _is_told_apart(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | pickle.UnpicklingError)


def _load(path: Path) -> Any:
    # Mapped, a file of gigabytes opens in no time; the format before torch 1.6 cannot be.
    is_mapped = zipfile.is_zipfile(path)
    if is_mapped:
        _require_stored(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)


def _require_stored(path: Path) -> None:
    """Refuse compressed members: mapped, they are no numbers, and a small file could fill the memory."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise UserError(f"{path} is compressed; write it again with torch.save, or use safetensors")


def _tensors_of(path: Path, content: Any) -> dict[str, Tensor]:
    # Training frameworks wrap the weights in an entry beside optimizer state, A1111 the vectors of a word.
    for wrapper in ("state_dict", "model", "string_to_param"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not named tensors; use a model file")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise UserError(f"{path}: {name} is no plain tensor of numbers; use a model file")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.dtype in DTYPES
