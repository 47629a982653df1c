"""Stochastic rounding keeps the mean and never makes numbers of what is none."""

import pytest
import torch

from sfumato.nn.rounding import round_stochastically_


def rounded(source: torch.Tensor, seed: int = 0) -> torch.Tensor:
    target = torch.empty(source.shape, dtype=torch.bfloat16)
    round_stochastically_(target, source, torch.Generator().manual_seed(seed))
    return target


@pytest.mark.parametrize("value", [1.0009765625, -0.3, 1e-3, 123.456, 3e-39])
def test_the_mean_is_the_value_and_only_its_two_neighbours_occur(value: float) -> None:
    source = torch.full((200_000,), value)
    found = rounded(source).double()
    low, high = found.unique().tolist()
    assert low < float(source[0]) < high
    assert high - low <= abs(value) / 64 + 1e-40
    assert found.mean().item() == pytest.approx(float(source[0]), abs=(high - low) * 5e-3)


def test_what_bfloat16_holds_stays_and_seeds_tell_the_draws() -> None:
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(rounded(exact.float()), exact)
    source = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(rounded(source, 3), rounded(source, 3))
    assert not torch.equal(rounded(source, 3), rounded(source, 4))


def test_infinities_and_every_kind_of_nan_stay_what_they_are() -> None:
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800000, -0x800000], dtype=torch.int32)
    found = rounded(bits.view(torch.float32))
    assert found[:3].isnan().tolist() == [True] * 3
    assert found[3:].tolist() == [float("inf"), float("-inf")]


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="float32 to bfloat16 alone"):
        round_stochastically_(torch.empty(1, dtype=torch.float16), torch.ones(1), torch.Generator())
