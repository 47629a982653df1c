"""The tensors of one safetensors file, mapped into memory or read plainly, by any number of threads."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from sfumato.checkpoints.header import read_header
from sfumato.errors import UserError

_LARGE_BYTES = 1 << 20


class TensorFile:
    """Named tensors of one file; whoever changes one changes neither the file nor another reader's tensor."""

    def __init__(self, path: Path, use_mmap: bool) -> None:
        """Open a file.

        Raises:
            UserError: it is missing, truncated or no safetensors file.
        """
        header = read_header(path)
        self.tensors, self.metadata = header.tensors, header.metadata
        self._path, self._data_start = path, header.data_start
        self._file = FileIO(path)
        self._seeking = Lock()
        self._map, self._is_private = _mapped(self._file) if use_mmap else (None, False)

    def read(self, name: str) -> Tensor:
        """Return a tensor, which stays valid when the file is closed."""
        info = self.tensors[name]
        if not info.size_bytes:
            return torch.empty(info.shape, dtype=info.dtype)
        start = self._data_start + info.start
        self._fetch_ahead(start, info.size_bytes)
        if self._map is not None and self._is_private and start % info.dtype.itemsize == 0:
            count = info.size_bytes // info.dtype.itemsize
            values = torch.frombuffer(self._map, dtype=info.dtype, offset=start, count=count)
        else:
            values = torch.frombuffer(self._copied(start, info.size_bytes), dtype=info.dtype)
        return values.reshape(info.shape)

    def close(self) -> None:
        """Close the file."""
        self._map = None  # tensors that were handed out keep a private map alive
        self._file.close()

    def _fetch_ahead(self, start: int, size_bytes: int) -> None:
        """Have the disk read the whole tensor: touching it page by page would ask for little at a time."""
        if self._map is not None and size_bytes >= _LARGE_BYTES and hasattr(mmap, "MADV_WILLNEED"):
            first = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, first, start + size_bytes - first)

    def _copied(self, start: int, size_bytes: int) -> bytearray:
        """Return bytes of the file in memory of their own."""
        if self._map is not None:
            return bytearray(memoryview(self._map)[start : start + size_bytes])
        data, num_read = bytearray(size_bytes), 0
        while num_read < size_bytes:  # a system reads 2 GB at a time at most
            count = self._read_into(memoryview(data)[num_read:], start + num_read)
            if not count:
                raise UserError(f"{self._path} was cut off while it was read; download it again")
            num_read += count
        return data

    def _read_into(self, place: memoryview, start: int) -> int:
        """Read from a position of the file; return how many bytes came."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [place], start)
        with self._seeking:  # Windows: all threads share one position
            self._file.seek(start)
            return self._file.readinto(place)


def _mapped(file: FileIO) -> tuple[mmap.mmap, bool]:
    """Map a file into memory; return whether the map is private, so that it may be written to.

    Pages of a private map are shared with the disk's cache, and whoever writes gets a copy of the page. But
    Windows sets memory aside for copies of them all, 24 GB for FLUX.1, and Linux may refuse to where there is
    less memory than that. There the map is for reading only: what is read from it is a copy.
    """
    if os.name != "nt":
        with suppress(OSError):
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), True
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), False
