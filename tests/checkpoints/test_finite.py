"""No writer ships values that are no numbers, and a file that was there before stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.checkpoints.finite import is_finite, largest
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.pickles import write_pickle
from sfumato.checkpoints.tensors import open_tensors, write_tensors
from sfumato.errors import UserError

Write = Callable[[Path, dict[str, Tensor], torch.dtype | None], None]
WRITERS: dict[str, Write] = {
    "a.safetensors": lambda path, tensors, dtype: write_tensors(path, tensors, None, dtype),
    "a.ckpt": lambda path, tensors, dtype: write_pickle(path, tensors, None, dtype),
    "b.safetensors": lambda path, tensors, dtype: write_adapter(path, tensors, {}, dtype),
    "b.pt": lambda path, tensors, dtype: write_adapter(path, tensors, {}, dtype),
}
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_value_that_is_no_number_is_found_in_every_format(dtype: torch.dtype) -> None:
    values = torch.linspace(-2, 2, 1001)
    assert is_finite(values.to(dtype))
    assert largest(values.to(dtype)) == 2
    broken = [torch.nan] + ([torch.inf, -torch.inf] if dtype != torch.float8_e4m3fn else [])
    for value in broken:
        assert not is_finite(values.index_fill(0, torch.tensor([700]), value).to(dtype))
    assert is_finite(torch.empty(0, 3, dtype=dtype))
    assert is_finite(torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (torch.nan, None, r"not written: x holds values that are no numbers \(NaN or inf\)"),
        (-torch.inf, torch.bfloat16, r"not written: x holds values that are no numbers"),
        (torch.inf, torch.float8_e4m3fn, r"not written: x holds values that are no numbers"),
        (7e4, torch.float16, "not written: x reaches 7e\\+04, too large for fp16; save it in bf16"),
        (3.4e38, torch.bfloat16, r"not written: x reaches 3.4e\+38, too large for bf16; save it in float"),
        (
            500.0,
            torch.float8_e4m3fn,
            "not written: x reaches 500, too large for float8_e4m3fn; save it in fp16",
        ),
    ],
)
@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_leaves_the_file_of_before(
    name: str, value: float, dtype: torch.dtype | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(b"before")
    with pytest.raises(UserError, match=said):
        WRITERS[name](path, {"a": torch.ones(2), "x": torch.tensor([1.0, value])}, dtype)
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_what_is_only_copied_stays_as_it_is_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"x": torch.tensor([1, torch.nan]), "y": torch.tensor(torch.inf), "z": torch.ones(1)}, source)
    with open_tensors(source) as reader:
        write_tensors(target, {name: reader.lazy(name) for name in reader.keys()}, None, torch.float16)  # noqa: SIM118
    assert caplog.messages == [
        f"{target}: 2 tensors hold values that are no numbers, copied as they are (x ...)"
    ]
    assert load_file(target)["x"].isnan().tolist() == [False, True]


def test_a_copy_that_a_format_is_too_narrow_for_is_refused(tmp_path: Path) -> None:
    copied = LazyTensor.of(torch.tensor([1e5]), is_copy=True)
    with pytest.raises(UserError, match=r"x reaches 1e\+05, too large for fp16; save it in bf16"):
        write_tensors(tmp_path / "b.safetensors", {"x": copied}, None, torch.float16)


def test_what_is_computed_names_the_file_that_broke_it(tmp_path: Path) -> None:
    good, bad = LazyTensor.of(torch.ones(1)), LazyTensor.of(torch.tensor([torch.nan]))
    for other, said in ((bad, "x holds .* as in bad.safetensors; use"), (good, "x grows too large for fp16")):
        made = LazyTensor(
            torch.float32,
            (1,),
            lambda: torch.tensor([torch.inf]).half(),
            sources={"good.safetensors": good, "bad.safetensors": other},
        )
        with pytest.raises(UserError, match=said):
            write_tensors(tmp_path / "b.safetensors", {"x": made})


def test_what_rounds_to_the_largest_number_of_8_bits_is_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x": torch.tensor([463.0, -448])}, None, torch.float8_e4m3fn)
    assert load_file(tmp_path / "a.safetensors")["x"].float().tolist() == [448, -448]
