"""Without numbers, sizes are still known, files can be read, and who asks for numbers can be told."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.nn import dry_run


def test_sizes_that_code_keeps_in_tensors_are_known() -> None:
    with dry_run.without_numbers("cpu"):
        assert torch.tensor((3, 3)).prod().item() == 9
        assert torch.zeros(3).sum().item() == 1  # nobody knows
    assert torch.tensor((3, 3)).prod().item() == 9


def test_a_file_is_read_as_tensors_without_numbers(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, 4, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    with dry_run.without_numbers("cpu"):
        tensor = load_file(tmp_path / "x.safetensors")["a"]
        assert not dry_run.has_numbers(tensor)
        assert (tensor.shape, tensor.dtype) == ((3, 4), torch.bfloat16)
        with dry_run.with_numbers():
            assert load_file(tmp_path / "x.safetensors")["a"].sum() == 12


def test_those_who_ask_for_numbers_can_be_told_from_those_who_are_wrong() -> None:
    layer = nn.Linear(2, 2, device="meta")
    for ask in (lambda: layer.weight.cpu(), lambda: layer.weight.sum().item(), lambda: layer.weight.numpy()):
        with pytest.raises((RuntimeError, TypeError)) as error:
            ask()
        assert dry_run.lacks_numbers(error.value)
    with pytest.raises(RuntimeError) as wrong:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not dry_run.lacks_numbers(wrong.value)
    with dry_run.without_numbers("cpu"), pytest.raises(RuntimeError) as asked:
        torch.nonzero(torch.zeros(3))
    assert dry_run.lacks_numbers(asked.value)
