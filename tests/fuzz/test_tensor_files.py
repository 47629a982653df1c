"""Files of tensors: safetensors, shards with their index, and pickled ones."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from sfumato.checkpoints.pickles import read_counters
from sfumato.checkpoints.tensors import open_tensors
from tests.fuzz import damage
from tests.fuzz.outcomes import outcome

TENSORS = {
    "a.weight": torch.ones(2, 3),
    "b": torch.arange(4).half(),
    "c": torch.tensor(1.0),
    "d": torch.ones(0, 2),
}
SOUND = save(TENSORS, {"key": "value"})
HEADER = json.loads(SOUND[8 : 8 + int.from_bytes(SOUND[:8], "little")])
DATA = SOUND[8 + int.from_bytes(SOUND[:8], "little") :]


def with_header(header: bytes, data: bytes = DATA) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def one(**entry: Any) -> bytes:
    return with_header(
        json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}).encode(), b"abcd"
    )


def read(path: Path) -> dict[str, torch.Tensor]:
    with open_tensors(path) as file:
        assert file.size_bytes < 1 << 20
        assert all(isinstance(text, str) for pair in file.metadata.items() for text in pair)
        return {name: tensor.clone() for name, tensor in file.items()}


def is_read_by_the_library(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return all(file.get_tensor(name) is not None for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError):
        return False


@given(content=damage.exchanged(HEADER).map(damage.json_text).map(with_header) | damage.damaged_bytes(SOUND))
@example(content=one(shape=[-1, -1]))
@example(content=one(shape=[True]))
@example(content=one(shape=[1.0]))
@example(content=one(shape=""))
@example(content=one(shape=[0, 1 << 62, 4], data_offsets=[0, 0])[:-4])
@example(content=one(data_offsets=[4, 8]))
@example(content=one(dtype=["F32"]))
@example(content=one() + b"more")
@example(
    content=with_header(one()[8:-5] + b',"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"abcd")
)
@example(content=with_header(b'{"__metadata__":{"a":1}}', b""))
@example(content=with_header(b'{"__metadata__":{"a":"\\ud800"}}', b""))
@example(content=with_header('{"__metadata__":{}}'.encode("utf-16-le"), b""))
@example(content=with_header(b'{"a":' * 200_000, b""))
def test_a_safetensors_file_is_refused_where_the_library_refuses_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    found = outcome("safetensors", lambda: read(tmp_path / "x.safetensors"))
    assert found is None or is_read_by_the_library(tmp_path / "x.safetensors")


INDEX = {"metadata": {"total_size": 8}, "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}


@given(content=damage.damaged_json(INDEX))
def test_an_index_of_shards_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    for number in "12":
        save_file({number: torch.ones(1)}, tmp_path / f"x-{number}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    outcome("index of shards", lambda: read(tmp_path))


def pickled(value: object, *, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


CHECKPOINT = {
    "state_dict": OrderedDict(a=torch.ones(2, 3), b=torch.nn.Parameter(torch.ones(2).half())),
    "epoch": 3,
}
ZIPPED, LEGACY = pickled(CHECKPOINT), pickled(CHECKPOINT, is_zip=False)
ODD = [
    {"a": torch.eye(2).to_sparse()},
    {"a": torch.ones(2, device="meta")},
    {"a": torch.ones(2, dtype=torch.uint16).view(torch.bits16)},
    {"state_dict": {"a": torch.ones(2), 3: torch.ones(1), None: torch.ones(1)}},
    {"model": {"state_dict": {"a": torch.ones(2)}}},
    [torch.ones(2)],
    torch.ones(2),
    3,
    {"a": {"b": torch.ones(2)}},
]
PICKLES = [
    *map(pickled, ODD),
    pickle.dumps({"a": 1}),
    pickle.dumps([1] * 9, 0),
    b"\x80\x02]q\x00(" * 5000,
    ZIPPED,
    LEGACY,
]


@pytest.mark.filterwarnings("default")  # of the library, about what it reads
@given(
    content=damage.damaged_zip(damage.members(ZIPPED), st.sampled_from(PICKLES))
    | damage.damaged_bytes(ZIPPED, LEGACY, *PICKLES)
    | st.sampled_from(PICKLES)
)
def test_a_pickled_file_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    outcome("pickled file", lambda: read(path))
    outcome("counters of a pickled file", lambda: read_counters(path))
