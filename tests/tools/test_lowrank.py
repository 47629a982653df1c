"""Approximations of low rank: as good as the best, and honest about how good."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfumato.tools.lowrank import clamped, decomposed_product, low_rank


def _planted(rows: int, columns: int, rank: int, noise: float) -> tuple[Tensor, Tensor]:
    """Return a matrix of that rank whose values decay to a hundredth, and the same with noise."""
    rng = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=rng))[0]
    right = torch.linalg.qr(torch.randn(columns, rank, generator=rng))[0]
    matrix = left * torch.logspace(0, -2, rank) @ right.T
    return matrix, matrix + noise * torch.randn(rows, columns, generator=rng)


@pytest.mark.parametrize("noise", [1e-5, 1e-4, 3e-4])
def test_random_directions_recover_what_was_planted_as_well_as_the_whole_decomposition(noise: float) -> None:
    planted, matrix = _planted(700, 400, 16, noise)
    found, best = low_rank(matrix, 16, "layer"), low_rank(matrix, 16, "layer", is_exact=True)
    errors = [(each.factors()[0] @ each.factors()[1] - planted).norm() for each in (found, best)]
    assert errors[0] / errors[1] < 1.02
    assert found.error / best.error < 1.01
    assert found.left.shape == (700, 16)
    assert found.right.shape == (16, 400)
    torch.testing.assert_close(found.left.T @ found.left, torch.eye(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.right @ found.right.T, torch.eye(16), atol=1e-5, rtol=0)


def test_the_error_that_is_told_is_the_error_and_the_bound_holds() -> None:
    _, matrix = _planted(600, 500, 12, 1e-3)
    for rank in (1, 6, 12, 20):
        found, best = low_rank(matrix, rank, "layer"), low_rank(matrix, rank, "layer", is_exact=True)
        up, down = found.factors()
        assert found.error == pytest.approx((matrix - up @ down).norm().item(), rel=1e-3)
        assert found.norm == pytest.approx(matrix.double().norm().item(), rel=1e-6)
        assert 0.7 * best.error < found.least_error <= best.error * (1 + 1e-5)
        assert best.error == best.least_error <= found.error * (1 + 1e-5)


def test_a_change_that_has_the_rank_is_found_without_error() -> None:
    planted, _ = _planted(300, 500, 8, 0)
    found = low_rank(planted, 8, "layer")
    assert found.error == 0
    torch.testing.assert_close(found.values, torch.logspace(0, -2, 8), rtol=1e-4, atol=1e-6)


def test_one_name_gives_one_result_and_small_or_flat_matrices_are_decomposed_as_a_whole() -> None:
    _, matrix = _planted(300, 300, 4, 1e-2)
    first, again, other = (low_rank(matrix, 4, name) for name in ("a", "a", "b"))
    assert torch.equal(first.left, again.left)
    assert not torch.equal(first.left, other.left)
    thin = low_rank(matrix[:40], 4, "a")
    torch.testing.assert_close(thin.values, torch.linalg.svdvals(matrix[:40])[:4])
    assert low_rank(matrix[:3], 10, "a").values.shape == (3,)
    assert low_rank(torch.zeros(400, 400), 4, "a").error == 0


def test_a_product_is_decomposed_without_being_made() -> None:
    rng = torch.Generator().manual_seed(0)
    for rows, rank, columns in ((50, 6, 40), (4, 6, 40), (50, 6, 5)):
        up, down = torch.randn(rows, rank, generator=rng), torch.randn(rank, columns, generator=rng)
        found = decomposed_product(up, down)
        torch.testing.assert_close(found.left * found.values @ found.right, up @ down, rtol=1e-4, atol=1e-4)
        count = min(rows, rank, columns)
        expected = torch.linalg.svdvals(up @ down)
        torch.testing.assert_close(found.values[:count], expected[:count], rtol=1e-4, atol=1e-5)
        small = found.truncated(2)
        assert small.error == pytest.approx(expected[2:].norm().item(), rel=1e-4)


def test_clamping_does_not_depend_on_the_signs_of_singular_vectors() -> None:
    rng = torch.Generator().manual_seed(1)
    up, down = torch.randn(300, 4, generator=rng), torch.randn(4, 200, generator=rng)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0])
    plain, turned = clamped(up, down, 0.99), clamped(up * signs, down * signs[:, None], 0.99)
    torch.testing.assert_close(plain[0] @ plain[1], turned[0] @ turned[1])
    signed = torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.99)
    assert plain[0].max().item() == pytest.approx(signed.item(), rel=0.05)
    assert (plain[0].abs() == plain[0].max()).float().mean().item() == pytest.approx(0.02, abs=0.015)
    assert all(torch.equal(a, b) for a, b in zip(clamped(up, down, 1.0), (up, down), strict=True))
