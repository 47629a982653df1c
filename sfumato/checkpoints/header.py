"""The header of a safetensors file: 8 bytes of length, then JSON that says where each tensor lies.

The format is published at https://github.com/huggingface/safetensors. Files are written in its standard
order (widest dtype first, then by name), so that hashes agree with those of other writers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import UserError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit; a larger number means that the file is something else."""

_DTYPE_ORDER = (
    "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64"
)
_DTYPE_RANKS = {code: rank for rank, code in enumerate(_DTYPE_ORDER.split())}
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
DTYPES = frozenset(_CODES)
"""What a file can hold."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor; `start` counts bytes from the first tensor's first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """All that can be known of a file without reading its data.

    Attributes:
        tensors: by name, in the order in which the data lies in the file.
        metadata: the file's own strings.
        data_start: offset of the first tensor's first byte in the file.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check a file's header.

    Raises:
        UserError: the file is missing, empty, truncated, or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:LENGTH_BYTES], "little")
            _check_start(path, start, length, size)
            file.seek(LENGTH_BYTES)
            text = file.read(length)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return _parse(path, text, size)


def standard_order(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the names in the order in which a standard file lists them."""
    return sorted(tensors, key=lambda name: (-_DTYPE_RANKS[_CODES[tensors[name].dtype]], name))


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes that come before the data of a file that holds `tensors` in this order."""
    entries: dict[str, Any] = {}
    if metadata:  # names of files may be no valid text, and other programs would refuse the whole file
        plain = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in metadata.items()}
        entries["__metadata__"] = plain
    end = 0
    for name, info in tensors.items():
        start, end = end, end + info.size_bytes
        entries[name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8, so that memory maps are aligned
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _check_start(path: Path, start: bytes, length: int, size: int) -> None:
    if size == 0:
        raise UserError(f"{path} is empty (0 bytes); download it again")
    if length > MAX_HEADER_BYTES or start[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        raise UserError(f"{path} {_recognize(start)}")
    smallest = LENGTH_BYTES + length
    if smallest > size:
        raise UserError(f"{path} is truncated: {size:,} of at least {smallest:,} bytes; download it again")


def _recognize(start: bytes) -> str:
    """Say what a file that is not safetensors is, and what to do."""
    if start.lstrip()[:1] == b"<":
        return "is a web page, not a model (did the download need a login?); download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "is a pickled checkpoint in spite of its name; rename it to .ckpt"
    if start.startswith(b"GGUF"):
        return "is a GGUF file, which cannot be loaded here; use the safetensors version"
    return "is not a safetensors file; download it again"


def _parse(path: Path, text: bytes, size: int) -> Header:
    try:
        tensors, metadata = _entries(path, text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} has a damaged safetensors header; download it again") from None
    data_start = LENGTH_BYTES + len(text)
    last = next(reversed(tensors.values()), TensorInfo(torch.uint8, (0,)))
    end = data_start + last.start + last.size_bytes
    if size < end:
        raise UserError(f"{path} is truncated: {size:,} of {end:,} bytes; download it again")
    if size > end:
        raise UserError(f"{path} has {size - end:,} bytes behind its last tensor; download it again")
    return Header(tensors, metadata, data_start)


def _entries(path: Path, text: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return tensors and metadata.

    What the format's own library refuses raises one of several errors, most often ValueError.
    """
    entries = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    if b"\\u" in text:  # JSON can escape half a character, which is no text
        json.dumps(entries, ensure_ascii=False).encode()
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    _require({*map(type, metadata.values())} <= {str})
    located = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
    lists = [numbers for _, entry in located for numbers in (entry["shape"], entry["data_offsets"])]
    _require({*map(type, lists)} <= {list})
    _require_whole_numbers([*chain.from_iterable(lists)])
    return _tensors(path, located), metadata


def _tensors(path: Path, located: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, TensorInfo]:
    """Read the entries of tensors, which follow each other without gaps: anything could be hidden there."""
    tensors: dict[str, TensorInfo] = {}
    at = 0
    for name, entry in located:
        start, end = entry["data_offsets"]
        tensors[name] = info = TensorInfo(_dtype(path, name, entry["dtype"]), tuple(entry["shape"]), start)
        _require(start == at and end - start == info.size_bytes)
        if start == end:  # nothing but the shape limits the other sides of an empty tensor
            _require(math.prod(filter(None, info.shape)) <= _LARGEST)
        at = end
    return tensors


def _dtype(path: Path, name: str, code: str) -> torch.dtype:
    if code not in _DTYPES:
        raise UserError(f"{path}: {name} has the dtype {code}, which is not supported; use another version")
    return _DTYPES[code]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, and refuse one with two members of a name."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError
    return members


def _require_whole_numbers(numbers: list[Any]) -> None:
    _require(
        {*map(type, numbers)} <= {int} and 0 <= min(numbers, default=0) <= max(numbers, default=0) <= _LARGEST
    )


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # JSON knows no NaN and no Infinity


_LARGEST = (1 << 63) - 1
"""What PyTorch can count."""
