"""Pickled checkpoints give their tensors and never run code."""

from pathlib import Path

import pytest
import torch

from sfumato.checkpoints.pickles import write_pickle
from sfumato.checkpoints.tensors import open_tensors
from sfumato.errors import UserError


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_tensors_of_a_pickled_checkpoint_are_read(tmp_path: Path) -> None:
    write_pickle(tmp_path / "x.pt", {"a": torch.ones(2), "b": torch.zeros(3).half()})
    with open_tensors(tmp_path / "x.pt") as reader:
        assert reader.shape("b") == (3,)
        assert reader.get("a").tolist() == [1, 1]
        assert reader.metadata == {}


def test_weights_inside_a_training_checkpoint_are_found(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "step": 3}, tmp_path / "x.ckpt")
    with open_tensors(tmp_path / "x.ckpt") as reader:
        assert reader.keys() == ["a"]


def test_code_inside_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Trap(tmp_path / "ran")}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="could run code"):
        open_tensors(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 broken zip"])
def test_a_damaged_pickle_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_tensors(tmp_path / "x.ckpt")
    assert "x.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)
