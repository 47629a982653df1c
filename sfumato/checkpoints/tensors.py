"""Model files as streams of named tensors: one tensor in memory at a time, reading and writing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.header import TensorInfo, encode_header, standard_order
from sfumato.checkpoints.lazy import AnyTensor, LazyTensor, finite, loaded, written_as
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.pickles import read_pickle
from sfumato.checkpoints.tensor_file import TensorFile
from sfumato.checkpoints.write_behind import behind
from sfumato.config import json_text
from sfumato.errors import UserError
from sfumato.transfer import to_host

SUFFIXES = (".safetensors", ".sft")

_SHARD = re.compile(r"(.+-)(\d{5})-of-(\d{5})(\.\w+)$")


class TensorReader:
    """Named tensors of one file or of the shards of one model; each is read when asked for.

    Use it as a context manager. Tensors stay valid after it is closed.
    """

    def __init__(self, path: Path, sources: list[_Source]) -> None:
        self.path = path
        self._sources = sources
        self._owners = {name: source for source in sources for name in source.tensors}

    @property
    def metadata(self) -> dict[str, str]:
        """The strings stored beside the tensors; of several shards, those of the first that has any."""
        return next((source.metadata for source in self._sources if source.metadata), {})

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(self.info(name).size_bytes for name in self._owners)

    def keys(self) -> list[str]:
        """Return all names, file by file in the order of the data."""
        return list(self._owners)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's dtype and shape without reading its data."""
        return self._owner(name).tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading its data."""
        return self.info(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype without reading its data."""
        return self.info(name).dtype

    def get(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """Read one tensor.

        Raises:
            UserError: there is no such tensor in the file.
        """
        return self._owner(name).read(name).to(device)

    def lazy(self, name: str, *, is_foreign: bool = False) -> LazyTensor:
        """Return a tensor to be read when it is written elsewhere; the reader must still be open then."""
        info = self.info(name)
        return LazyTensor(info.dtype, info.shape, lambda: self.get(name), is_foreign, is_copy=True)

    def below(self, prefix: str) -> TensorReader:
        """Return the tensors whose names begin with `prefix`, without it; closing either closes both."""
        return TensorReader(self.path, [_Below(source, prefix) for source in self._sources])

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor, one at a time."""
        for name in self._owners:
            yield name, self.get(name)

    def close(self) -> None:
        """Close the files."""
        for source in self._sources:
            source.close()

    def __contains__(self, name: str) -> bool:
        return name in self._owners

    def __len__(self) -> int:
        return len(self._owners)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _owner(self, name: str) -> _Source:
        if name not in self._owners:
            raise UserError(f"{self.path} has no tensor named {name}; is it another kind of model?")
        return self._owners[name]


def open_tensors(path: Path, *, use_mmap: bool = True) -> TensorReader:
    """Open a model's tensors: a .safetensors file, a folder of shards, or a pickled file (weights only).

    Args:
        path: a file; one shard of several (the others are found); or a folder with a file or shards.
        use_mmap: map files into memory; without it they are read plainly, which is faster on network drives.

    Raises:
        UserError: the path is missing, or a file is empty, truncated or no model.
    """
    return TensorReader(path, [_open_source(file, use_mmap) for file in model_files(path)])


def model_files(path: Path) -> list[Path]:
    """Return the files behind `path`, shards in order.

    Raises:
        UserError: there is nothing at `path`, or a shard is missing.
    """
    if path.is_dir():
        return _files_of_folder(path)
    shard = _SHARD.match(path.name)
    if not shard:
        return [path]
    stem, _, count, suffix = shard.groups()
    return _existing([path.with_name(f"{stem}{i:05d}-of-{count}{suffix}") for i in range(1, int(count) + 1)])


def write_tensors(
    path: Path,
    tensors: Mapping[str, AnyTensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    *,
    takes_any: bool = False,
) -> None:
    """Write a safetensors file, one tensor at a time; `path` changes only when all is safely on the disk.

    Args:
        path: the file to write or to replace.
        tensors: in any order; a `LazyTensor` is made when its turn comes and forgotten at once.
        metadata: strings to store beside the tensors.
        dtype: what to cast floating-point weights to; None keeps each tensor's own.
        takes_any: write what is no number, too; otherwise see `lazy.finite`.

    Raises:
        UserError: the folder cannot be written, the disk is full, or a value is no number or too large.
    """
    infos = _infos(tensors, dtype)
    header, ordered = encode_header(infos, metadata or {}), {name: tensors[name] for name in infos}
    made = _plainly(ordered, dtype) if takes_any else finite(path, ordered, dtype)
    with atomic_file(path, required_bytes(tensors, metadata, dtype)) as file:
        file.write(header)
        with behind(file.write) as write:  # the disk works while the next tensor is made
            for name, tensor in made:
                write(_bytes(name, tensor, infos[name]))


def require_finite_file(path: Path, name: Path) -> None:
    """Look at a file that somebody else has written, before it gets its name.

    Raises:
        UserError: a value in it is no number.
    """
    with open_tensors(path) as file:
        for _ in finite(name, dict(file.items())):
            pass


def required_bytes(
    tensors: Mapping[str, AnyTensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> int:
    """Return the exact size of the file that `write_tensors` would write."""
    infos = _infos(tensors, dtype)
    return len(encode_header(infos, metadata or {})) + sum(info.size_bytes for info in infos.values())


def serialized(
    tensors: Mapping[str, AnyTensor], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, Iterator[memoryview]]:
    """Return a file's header and, one tensor at a time, its data, whatever the values."""
    infos = _infos(tensors, None)
    made = _plainly({name: tensors[name] for name in infos}, None)
    return encode_header(infos, metadata or {}), (_bytes(name, tensor, infos[name]) for name, tensor in made)


def _infos(tensors: Mapping[str, AnyTensor], dtype: torch.dtype | None) -> dict[str, TensorInfo]:
    infos = {
        name: TensorInfo(written_as(tensor, dtype), tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    return {name: infos[name] for name in standard_order(infos)}


def _plainly(tensors: Mapping[str, AnyTensor], dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """Make each tensor as `lazy.finite` does, without looking at it."""
    fetched = to_host((loaded(tensor), written_as(tensor, dtype)) for tensor in tensors.values())
    yield from zip(tensors, fetched, strict=True)


def _bytes(name: str, tensor: Tensor, info: TensorInfo) -> memoryview:
    if tuple(tensor.shape) != info.shape:
        raise ValueError(f"{name} was announced as {info.shape} but made as {tuple(tensor.shape)}")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


class _Source(Protocol):
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    def read(self, name: str) -> Tensor: ...

    def close(self) -> None: ...


class _PickledFile:
    def __init__(self, path: Path) -> None:
        self._values = read_pickle(path)
        self.tensors = {
            name: TensorInfo(value.dtype, tuple(value.shape)) for name, value in self._values.items()
        }
        self.metadata: dict[str, str] = {}

    def read(self, name: str) -> Tensor:
        return self._values[name]

    def close(self) -> None:
        self._values = {}


class _Below:
    def __init__(self, source: _Source, prefix: str) -> None:
        self._source = source
        self._prefix = prefix
        self.tensors = {
            name.removeprefix(prefix): info
            for name, info in source.tensors.items()
            if name.startswith(prefix)
        }
        self.metadata = source.metadata

    def read(self, name: str) -> Tensor:
        return self._source.read(self._prefix + name)

    def close(self) -> None:
        self._source.close()


def _open_source(path: Path, use_mmap: bool) -> _Source:
    is_pickle = path.suffix.lower() in PICKLE_SUFFIXES
    return _PickledFile(path) if is_pickle else TensorFile(path, use_mmap)


def _files_of_folder(folder: Path) -> list[Path]:
    index = next(iter(sorted(folder.glob("*.index.json"))), None)
    if index:
        return _existing([folder / name for name in _indexed_names(index)])
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    files = files or sorted(file for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no model file; give the file itself or another folder")
    plain = [file for file in files if file.name.count(".") == 1]  # `model.fp16.safetensors` is a second copy
    return model_files((plain or files)[0])


def _indexed_names(index: Path) -> list[str]:
    """Return the files that an index of shards names, which lie beside it."""
    shards = json_text.read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not {*map(type, shards.values())} == {str}:
        raise UserError(f"{index} is not a list of shards; download it again")
    return sorted(set(shards.values()))


def _existing(files: list[Path]) -> list[Path]:
    # `Path.is_file` raises OSError for names that are too long.
    missing = [file.name for file in files if not os.path.isfile(file)]
    if missing:
        raise UserError(
            f"{files[0].parent} lacks {missing[0]} ({len(missing)} of {len(files)} shards); download it"
        )
    return files
