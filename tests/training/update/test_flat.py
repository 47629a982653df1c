import copy
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.training.core.plan import Plan
from sfumato.training.update import flat, optimizers
from sfumato.training.update.optimizer_step import Update
from sfumato.training.update.stepping import Stepping

STEP = Plan(1, 1, 1).step(1)


class Alone:
    def sum_(self, tensor: torch.Tensor) -> None:
        """Sum over one process."""


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 16, bias=False), nn.Linear(16, 32), nn.Linear(32, 8, bias=False))


def _train(kind: type, *, joined: bool, num_steps: int = 5, **arguments: Any) -> tuple[nn.Module, Update]:
    model = _model()
    pieces, parameters = flat.flatten(model.parameters()) if joined else ([], list(model.parameters()))
    update = Update(Stepping(kind(parameters, lr=1e-2, **arguments)), Alone(), 1.0, flat=pieces)  # type: ignore[arg-type]
    data = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    for _ in range(num_steps):
        update.begin(STEP)
        update.accumulate(model(data).square().mean() * 10)
        update.finish()
    return model, update


@pytest.mark.parametrize("kind", optimizers.ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_joined_parameters_are_trained_like_separate_ones(kind: type) -> None:
    (apart, _), (joined, update) = _train(kind, joined=False), _train(kind, joined=True)
    assert len(update.stepping.optimizer.param_groups[0]["params"]) == 1
    for a, b, start in zip(apart.parameters(), joined.parameters(), _model().parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, start)


@pytest.mark.parametrize("arguments", [{}, {"amsgrad": True, "weight_decay": 0.5}])
def test_a_fused_optimizer_gives_the_same_bits_joined_and_apart(arguments: dict[str, Any]) -> None:
    (apart, _), (joined, _) = (
        _train(torch.optim.AdamW, joined=j, fused=True, **arguments) for j in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(apart.parameters(), joined.parameters(), strict=True))


def test_joining_keeps_values_and_identity_and_begins_each_tensor_where_it_is_aligned() -> None:
    parameters = [nn.Parameter(torch.randn(n)) for n in (5, 3, 16, 1)]
    parameters.append(nn.Parameter(torch.randn(7).bfloat16()))
    before = copy.deepcopy([p.data for p in parameters])
    joined, trained = flat.flatten(parameters)
    assert [whole.numel() for whole in trained] == [4 * 16, 32]
    assert [piece for one in joined for piece in one.pieces] == parameters
    for parameter, value in zip(parameters, before, strict=True):
        assert torch.equal(parameter, value)
        assert (parameter.data_ptr() - joined[parameter.dtype == torch.bfloat16].whole.data_ptr()) % 64 == 0
    with torch.no_grad():
        parameters[1].fill_(2.0)
    assert trained[0][16:19].tolist() == [2.0, 2.0, 2.0]


def test_a_large_parameter_stays_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "LARGE", 100)
    parameters = [nn.Parameter(torch.randn(n)) for n in (99, 100, 3)]
    joined, trained = flat.flatten(parameters)
    assert [len(one.pieces) for one in joined] == [2]
    assert trained[0].numel() == 128
    assert trained[1] is parameters[1]


def test_a_parameter_that_was_given_other_memory_is_noticed_at_the_next_step() -> None:
    model, update = _train(torch.optim.SGD, joined=True, num_steps=1)
    weight = next(model.parameters())
    weight.data = weight.data.clone()
    with pytest.raises(ValueError, match="moved while it was trained"):
        update.begin(STEP)


def test_a_parameter_that_begins_anywhere_moves_to_where_kernels_like_it() -> None:
    room = torch.arange(40.0)
    (first,) = (start for start in range(16) if room[start:].data_ptr() % 64 == 4)
    parameters = [nn.Parameter(torch.empty(0)) for _ in range(2)]
    parameters[0].data, parameters[1].data = room[first : first + 6].view(2, 3), room[first + 15 : first + 19]
    places = [parameter.data_ptr() for parameter in parameters]
    flat.align(parameters)
    assert parameters[0].data_ptr() % 64 == 0
    assert torch.equal(parameters[0], torch.arange(first, first + 6.0).view(2, 3))
    assert parameters[1].data_ptr() == places[1]
