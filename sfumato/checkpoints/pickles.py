"""Old checkpoint files (.ckpt, .pt, .bin), read and written as named tensors, never as code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.atomic import atomic_file
from sfumato.errors import UserError

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickled checkpoint, without running any code that it may contain.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors and could run code, so it is not loaded; use safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError):
        raise UserError(f"{path} is damaged or not a checkpoint; download it again") from None
    return _tensors_of(path, content)


def write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a pickled dictionary; such files carry no metadata."""
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    with atomic_file(path, size_bytes) as file:
        torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, file)


def _tensors_of(path: Path, content: Any) -> dict[str, Tensor]:
    # Training frameworks wrap the weights in a `state_dict` entry beside optimizer state.
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not named tensors; use a model file")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
