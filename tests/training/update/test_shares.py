"""Weights are parted into shares of one rate: one by one, by block, or into so many of equal size."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from torch import nn

from sfumato.training.update import shares
from sfumato.training.update.stepping import Group, Stepping

RECORDED = [
    ([10], [1e-5], 3, [3, 4, 3]),
    ([10, 4], [1e-5, 2e-5], 4, [3, 4, 3, 4]),
    ([7, 7, 2], [1e-5, 1e-5, 1e-6], 5, [3, 4, 3, 4, 2]),
    ([5], [1e-5], 10, [1] * 5),
    ([1, 1, 1, 9], [1e-5, 5e-6, 1e-5, 1e-5], 3, [1, 1, 3, 4, 3]),
]
"""The cases `chunks` of `k_sdxl_train`: groups of equal weights, their rates, the option, and how many
weights each share has: right by size, where sd-scripts counts [4, 4, 2] in the first."""


def _groups(sizes: list[list[int]], rates: list[float]) -> list[Group]:
    return [
        {"params": [nn.Parameter(torch.zeros(size)) for size in group], "lr": rate}
        for group, rate in zip(sizes, rates, strict=True)
    ]


def _by_size(groups: list[Group], num: int) -> tuple[list[Group], list[int]]:
    num_bytes = sum(weight.nbytes for group in groups for weight in group["params"])
    return shares.divide(groups, shares.by_size(num, num_bytes))


@pytest.mark.parametrize(("sizes", "rates", "num", "expected"), RECORDED)
def test_shares_are_neighbours_of_one_rate_and_of_equal_size(
    sizes: list[int], rates: list[float], num: int, expected: list[int]
) -> None:
    groups = _groups([[3] * size for size in sizes], rates)
    found, places = _by_size(groups, num)
    assert [len(share["params"]) for share in found] == expected
    weights = [weight for group in groups for weight in group["params"]]
    assert [id(w) for share in found for w in share["params"]] == [id(w) for w in weights]
    assert [found[place]["lr"] for place in places] == rates


def test_a_weight_is_in_the_share_where_its_middle_lies() -> None:
    groups = _groups([[1, 1, 40, 1, 1, 20, 18, 1, 1]], [1e-3])
    found, _ = _by_size(groups, 3)
    assert [[w.numel() for w in share["params"]] for share in found] == [[1, 1, 40], [1, 1, 20], [18, 1, 1]]


def test_shares_by_block_hold_what_is_of_no_block_together_and_keep_rates_apart() -> None:
    blocks = [nn.Linear(2, 2), nn.Linear(2, 2)]
    others = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    first = [others[0], *blocks[0].parameters(), others[1], blocks[1].weight]
    groups: list[Group] = [{"params": first, "lr": 1.0}, {"params": [blocks[1].bias, others[2]], "lr": 2.0}]
    found, places = shares.divide(groups, shares.by_block(blocks))
    numbers = dict(zip(map(id, [*first, blocks[1].bias, others[2]]), count(), strict=False))
    assert [[numbers[id(w)] for w in share["params"]] for share in found] == [[0, 3], [1, 2], [4], [5], [6]]
    assert [share["lr"] for share in found] == [1.0] * 3 + [2.0] * 2
    assert places == [0, 3]


def test_the_rates_that_are_shown_are_those_of_the_described_groups() -> None:
    groups = _groups([[4, 4], [4], [2, 2]], [1e-3, 1e-3, 5e-4])
    found, places = _by_size(groups, 8)
    stepping = Stepping(torch.optim.SGD(found, lr=1.0), rate_places=places)
    assert len(found) > 3
    assert [rate.scheduled for rate in stepping.rates()] == [1e-3, 1e-3, 5e-4]
