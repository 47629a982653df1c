"""Recomputed blocks give the gradients of kept ones."""

import copy
import random
import weakref

import torch
from torch import nn

from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.nn import checkpointing


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.runs = 0

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        self.runs += 1
        drawn = random.choice([1, 2, 3])  # some networks of others draw so
        return x + scale * drawn * nn.functional.dropout(self.layer(x), 0.5)


def gradients(blocks: list[Block]) -> list[torch.Tensor | None]:
    torch.manual_seed(1)
    random.seed(1)
    x = torch.ones(2, 8)
    for block in blocks:
        x = block(x, scale=0.5)
    x.square().sum().backward()
    return [parameter.grad for block in blocks for parameter in block.parameters()]


def test_gradients_are_the_same_with_the_same_dropout() -> None:
    torch.manual_seed(0)
    kept = [Block(), Block()]
    recomputed = copy.deepcopy(kept)
    checkpointing.enable(recomputed)
    for expected, actual in zip(gradients(kept), gradients(recomputed), strict=True):
        assert expected is not None
        assert actual is not None
        assert torch.equal(expected, actual)
    assert [block.runs for block in kept] == [1, 1]
    assert [block.runs for block in recomputed] == [2, 2]


def test_enabling_twice_recomputes_once_and_disabling_restores() -> None:
    blocks = [Block()]
    checkpointing.enable(blocks)
    checkpointing.enable(blocks)
    gradients(blocks)
    assert blocks[0].runs == 2
    checkpointing.disable(blocks)
    assert not checkpointing.is_enabled(blocks[0])
    gradients(blocks)
    assert blocks[0].runs == 3


def test_nothing_is_recomputed_without_gradients_and_hooks_run_once() -> None:
    block = Block()
    calls = []
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointing.enable([block])
    with torch.no_grad():
        block(torch.ones(1, 8))
    assert block.runs == 1
    gradients([block])
    assert len(calls) == 2


def test_a_flux_keeps_less_and_learns_the_same() -> None:
    torch.manual_seed(0)
    model = Flux(FluxShape(32, 2, 2, 2, 8, 12, 10, 64, (4, 6, 6), guidance=False))
    inputs = (torch.randn(1, 6, 8), torch.zeros(1, 6, 3), torch.randn(1, 3, 12), torch.zeros(1, 3, 3))
    results = []
    for recompute in (False, True):
        if recompute:
            checkpointing.enable([*model.double_blocks, *model.single_blocks])
        kept: list[int] = []

        def pack(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(
                *inputs, torch.tensor([0.5]), torch.randn(1, 10, generator=torch.Generator().manual_seed(2))
            )
        out.square().sum().backward()
        results.append(
            (
                sum(kept),
                [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
            )
        )
    assert results[1][0] < results[0][0] / 2
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_what_enters_a_block_can_wait_in_main_memory() -> None:
    torch.manual_seed(0)
    kept = [Block(), Block(), Block()]
    away = copy.deepcopy(kept)
    checkpointing.enable(kept)
    checkpointing.enable(away, offload=True)
    alive = []
    for blocks in (kept, away):
        torch.manual_seed(1)
        random.seed(1)
        x = torch.ones(2, 8, requires_grad=True)
        inputs = []
        for block in blocks:
            x = block(x)
            inputs.append(weakref.ref(x))
        loss = x.square().sum()
        del x
        alive.append([ref() is not None for ref in inputs[:-1]])
        loss.backward()
    assert alive == [[True, True], [False, False]]
    for expected, actual in zip(gradients(kept), gradients(away), strict=True):
        assert expected is not None
        assert actual is not None
        assert torch.equal(expected, actual)
    assert [block.runs for block in away] == [4, 4, 4]
