"""Attention as matrix products: the numbers of PyTorch's kernel, and that kernel wherever it must be used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.nn import cpu_attention
from sfumato.nn.attention import attend

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
HEADS, WIDTH = 3, 8
Inputs = tuple[Tensor, Tensor, Tensor]


def heads(tokens: int, seed: int, batch: int = 2) -> Tensor:
    """Return (B, H, tokens, D) as layers hand it out: a view of (B, tokens, H * D)."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, HEADS * WIDTH, generator=rng).unflatten(-1, (HEADS, -1)).transpose(1, 2)


def inputs(dtype: torch.dtype = torch.float32, queries: int = 9, keys: int = 5) -> Inputs:
    return heads(queries, 0).to(dtype), heads(keys, 1).to(dtype), heads(keys, 2).to(dtype)


def with_gradients(kernel: Callable[..., Tensor], given: Inputs) -> list[Tensor]:
    """Return what a kernel makes of query, key and value, and the gradients of all three."""
    leaves = [x.clone().requires_grad_() for x in given]
    output = kernel(*leaves)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(7)).to(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Collect the shapes of queries for which products were chosen."""
    seen: list[torch.Size] = []
    products = cpu_attention.attend
    monkeypatch.setattr(cpu_attention, "attend", lambda q, k, v: seen.append(q.shape) or products(q, k, v))
    monkeypatch.setattr(cpu_attention, "LEAST_SCORES", 45)
    return seen


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("at_once", [1, 4 * 45, 2**20])
@pytest.mark.parametrize("kept", [0, 2**20])
def test_output_and_gradients_are_those_of_pytorchs_kernel(
    dtype: torch.dtype, at_once: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(cpu_attention, "KEPT_SCORES", kept)
    expected = with_gradients(F.scaled_dot_product_attention, inputs())
    for found, plain in zip(with_gradients(cpu_attention.attend, inputs(dtype)), expected, strict=True):
        assert found.dtype is dtype
        assert found.shape == plain.shape
        assert (found.float() - plain).abs().max() <= BOUNDS[dtype] * plain.abs().max()


def test_a_checkpointed_product_gives_the_same_gradients() -> None:
    def checkpointed(*given: Tensor) -> Tensor:
        result = checkpoint(cpu_attention.attend, *given, use_reentrant=False)
        assert isinstance(result, Tensor)
        return result

    expected = with_gradients(cpu_attention.attend, inputs())
    for mine, reference in zip(with_gradients(checkpointed, inputs()), expected, strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize(("bound", "num_kept"), [(2 * HEADS * 45, 1), (2 * HEADS * 45 - 1, 0)])
def test_scores_are_kept_for_the_backward_pass_up_to_a_bound(
    bound: int, num_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "KEPT_SCORES", bound)
    shapes: list[torch.Size] = []
    leaves = [x.requires_grad_() for x in inputs()]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(x.shape) or x, lambda x: x):
        cpu_attention.attend(*leaves)
    assert shapes.count(torch.Size((2 * HEADS, 9, 5))) == num_kept
    assert len(shapes) == 3 + num_kept


def test_sizes_of_a_real_unet_give_the_numbers_of_pytorchs_kernel() -> None:
    given = inputs(torch.bfloat16, 1024, 77)
    expected = with_gradients(F.scaled_dot_product_attention, given)
    for found, plain in zip(with_gradients(cpu_attention.attend, given), expected, strict=True):
        assert (found.float() - plain.float()).norm() <= 1e-2 * plain.float().norm()


def test_products_stay_in_bfloat16_under_autocast_and_without_gradients() -> None:
    given = inputs(torch.bfloat16)
    plain = cpu_attention.attend(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(cpu_attention.attend(*given), plain, rtol=0, atol=0)


def test_long_bfloat16_sequences_on_a_cpu_are_computed_as_products(calls: list[torch.Size]) -> None:
    given = inputs(torch.bfloat16)
    expected = F.scaled_dot_product_attention(*given).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(*given), expected, rtol=0, atol=2e-2)
    assert calls == [(2, HEADS, 9, WIDTH)]


@pytest.mark.parametrize("bounds", [{"LEAST_SCORES": 46}, {"MOST_SCORES": 44}])
def test_few_and_very_many_scores_are_left_to_pytorch(
    bounds: dict[str, int], calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, bound in bounds.items():
        monkeypatch.setattr(cpu_attention, name, bound)
    attend(*inputs(torch.bfloat16))
    assert calls == []


def test_other_formats_and_hidden_keys_are_left_to_pytorch(calls: list[torch.Size]) -> None:
    for dtype in (torch.float32, torch.float16):
        attend(*inputs(dtype))
    query, key, value = inputs(torch.bfloat16)
    attend(query, key, value, torch.ones(2, 1, 1, 5, dtype=torch.bool))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attend(query.float(), key, value)
    assert calls == []
