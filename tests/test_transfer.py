"""Tensors come to RAM as they are, whatever their dtype and order."""

from __future__ import annotations

import torch

from sfumato.transfer import to_host


def test_tensors_come_in_order_and_in_the_dtype_that_is_asked_for() -> None:
    tensors = [torch.arange(6.0).reshape(2, 3).T, torch.tensor(3), torch.empty(0), torch.ones(2).bfloat16()]
    wanted = [torch.bfloat16, torch.int64, torch.float32, torch.float32]
    found = list(to_host(zip(tensors, wanted, strict=True)))
    assert [tensor.dtype for tensor in found] == wanted
    for tensor, before in zip(found, tensors, strict=True):
        assert torch.equal(tensor.double(), before.double())


def test_what_is_in_main_memory_already_is_not_copied() -> None:
    tensor = torch.ones(3)
    (found,) = to_host([(tensor, torch.float32)])
    assert found.data_ptr() == tensor.data_ptr()


def test_tensors_are_made_only_when_they_are_asked_for() -> None:
    made = []

    def making() -> object:
        for number in range(3):
            made.append(number)
            yield torch.tensor(number), torch.int64

    fetched = to_host(making())  # type: ignore[arg-type]
    assert next(fetched).item() == 0
    assert len(made) <= 2
