"""Model files are read and written one tensor at a time, and broken ones say what is wrong."""

import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from sfumato.checkpoints import tensor_file
from sfumato.checkpoints.tensors import LazyTensor, model_files, open_tensors, required_bytes, write_tensors
from sfumato.errors import UserError

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.float32,
    torch.float64,
    torch.int64,
]


def every_kind() -> dict[str, torch.Tensor]:
    named = {f"b.{i}": torch.arange(6).reshape(2, 3).to(dtype) for i, dtype in enumerate(DTYPES)}
    return {**named, "a.scalar": torch.tensor(1), "a.empty": torch.empty(0, 3), "ä\n": torch.ones(5)}


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left.float(), right.float())


@pytest.mark.parametrize("use_mmap", [True, False])
def test_what_was_written_is_read_back(tmp_path: Path, use_mmap: bool) -> None:
    tensors = every_kind()
    write_tensors(tmp_path / "x.safetensors", tensors, {"a": "b"})
    with open_tensors(tmp_path / "x.safetensors", use_mmap=use_mmap) as reader:
        assert set(reader.keys()) == set(tensors)
        assert reader.metadata == {"a": "b"}
        assert reader.size_bytes == sum(tensor.nbytes for tensor in tensors.values())
        for name, tensor in tensors.items():
            assert reader.shape(name) == tuple(tensor.shape)
            assert reader.dtype(name) == tensor.dtype
            assert same(reader.get(name), tensor)
    assert same(dict(load_file(tmp_path / "x.safetensors"))["b.7"], tensors["b.7"])


def test_bytes_equal_those_of_the_safetensors_library(tmp_path: Path) -> None:
    metadata = {"key": 'quote " slash / line\n control \x01 ümlaut'}
    write_tensors(tmp_path / "x.safetensors", every_kind(), metadata)
    assert (tmp_path / "x.safetensors").read_bytes() == save(every_kind(), metadata)


def test_announced_size_is_the_files_size(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.sft", every_kind(), {"a": "b"}, torch.bfloat16)
    assert (tmp_path / "x.sft").stat().st_size == required_bytes(every_kind(), {"a": "b"}, torch.bfloat16)


def test_only_floating_point_tensors_are_cast(tmp_path: Path) -> None:
    write_tensors(
        tmp_path / "x.sft", {"f": torch.ones(2), "i": torch.ones(2).long()}, dtype=torch.float8_e4m3fn
    )
    with open_tensors(tmp_path / "x.sft") as reader:
        assert reader.dtype("f") == torch.float8_e4m3fn
        assert reader.dtype("i") == torch.int64


def test_tensors_outlive_their_reader_and_are_private(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.sft", {"a": torch.ones(4)})
    with open_tensors(tmp_path / "x.sft") as reader:
        tensor = reader.get("a")
    tensor += 1
    assert tensor.tolist() == [2, 2, 2, 2]
    with open_tensors(tmp_path / "x.sft") as reader:
        assert reader.get("a").tolist() == [1, 1, 1, 1]


class Refusing:
    """A system that maps for reading alone; it notes how maps were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, descriptor: int, length: int, access: int) -> mmap.mmap:
        self.asked.append(access)
        if access == mmap.ACCESS_COPY:
            raise OSError(12, "Cannot allocate memory")
        return MAP(descriptor, length, access=access)


MAP = mmap.mmap


@pytest.mark.parametrize("system", ["nt", "posix"])
def test_where_a_private_map_costs_memory_files_are_mapped_for_reading_only(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, path, refusing = every_kind(), tmp_path / "x.sft", Refusing()
    write_tensors(path, tensors)
    before = path.read_bytes()
    monkeypatch.setattr(tensor_file, "os", SimpleNamespace(name=system))
    monkeypatch.setattr(mmap, "mmap", refusing)
    with open_tensors(path) as reader:
        read = dict(reader.items())
    assert refusing.asked == {"nt": [mmap.ACCESS_READ], "posix": [mmap.ACCESS_COPY, mmap.ACCESS_READ]}[system]
    assert all(same(read[name], tensor) for name, tensor in tensors.items())
    for tensor in read.values():
        tensor.zero_()  # it is nobody else's
    assert path.read_bytes() == before


@pytest.mark.parametrize("system", ["at a position", "where the file stands"])
def test_threads_that_read_plainly_do_not_disturb_each_other(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "where the file stands":
        monkeypatch.delattr(os, "preadv", raising=False)
    names = [f"t{index}" for index in range(200)]
    write_tensors(tmp_path / "x.sft", {name: torch.full((500,), float(name[1:])) for name in names})
    with open_tensors(tmp_path / "x.sft", use_mmap=False) as reader, ThreadPoolExecutor(8) as threads:
        read = list(threads.map(reader.get, names))
    assert [tensor.unique().tolist() for tensor in read] == [[float(name[1:])] for name in names]


def test_a_file_that_is_cut_off_while_it_is_read_is_one_line(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.sft", {"a": torch.ones(100)})
    with open_tensors(tmp_path / "x.sft", use_mmap=False) as reader:
        os.truncate(tmp_path / "x.sft", 300)
        with pytest.raises(UserError, match=r"x.sft was cut off while it was read"):
            reader.get("a")


def test_lazy_tensors_are_made_one_after_the_other(tmp_path: Path) -> None:
    alive: list[str] = []

    def lazy(name: str) -> LazyTensor:
        def load() -> torch.Tensor:
            alive.append(name)
            return torch.full((3,), len(alive), dtype=torch.float32)

        return LazyTensor(torch.float32, (3,), load)

    write_tensors(tmp_path / "x.sft", {name: lazy(name) for name in "cab"})
    assert alive == ["a", "b", "c"]
    with open_tensors(tmp_path / "x.sft") as reader:
        assert reader.get("c").tolist() == [3, 3, 3]


def test_a_lazy_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    wrong = LazyTensor(torch.float32, (3,), lambda: torch.ones(4))
    with pytest.raises(ValueError, match="announced as"):
        write_tensors(tmp_path / "x.sft", {"a": wrong})
    assert list(tmp_path.iterdir()) == []


def test_shards_are_found_from_the_folder_an_index_or_any_shard(tmp_path: Path) -> None:
    names = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, name in enumerate(names):
        save_file({f"t{i}": torch.full((2,), float(i))}, tmp_path / name)
    with open_tensors(tmp_path / names[1]) as reader:
        assert reader.keys() == ["t0", "t1", "t2"]
    with open_tensors(tmp_path) as reader:
        assert reader.get("t2").tolist() == [2, 2]
    index = {"weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [file.name for file in model_files(tmp_path)] == names
    (tmp_path / names[2]).unlink()
    with pytest.raises(UserError, match=f"lacks {names[2]}"):
        open_tensors(tmp_path)


def test_a_folder_prefers_the_plain_file_to_its_half_precision_copy(tmp_path: Path) -> None:
    for name in ("model.fp16.safetensors", "model.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
    assert [file.name for file in model_files(tmp_path)] == ["model.safetensors"]


def test_every_truncated_file_is_named_as_such(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(64), "b": torch.ones(8)})
    data = (tmp_path / "x.safetensors").read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut\.safetensors") as caught:
            open_tensors(tmp_path / "cut.safetensors")
        assert "\n" not in str(caught.value)
        assert length < 9 or f"is truncated: {length:,} of " in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html>sign in</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"PK\x03\x04 and more of a zip file", "rename it to .ckpt"),
        (b"GGUF\x03\x00\x00\x00 and more of it", "GGUF"),
        (bytes(range(256)), "is not a safetensors file"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not json here!}", "damaged"),
        (b'\x1e\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F9","shape":[]}}', "damaged|cannot be loaded"),
    ],
)
def test_a_file_that_is_something_else_says_what_to_do(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=said):
        open_tensors(tmp_path / "x.safetensors")


def test_a_header_whose_length_begins_like_html_is_read(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x3C)
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" * 4)
    with open_tensors(tmp_path / "x.safetensors") as reader:
        assert reader.get("a").tolist() == [0]


def test_missing_files_folders_and_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_tensors(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no model file"):
        open_tensors(tmp_path)
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    with (
        open_tensors(tmp_path / "x.safetensors") as reader,
        pytest.raises(UserError, match="no tensor named b"),
    ):
        reader.get("b")
