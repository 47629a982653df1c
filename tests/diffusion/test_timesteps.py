"""Noise levels: their ranges, their distributions, and the one draw that each takes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sfumato.diffusion import noise, schedules, timesteps, weighting
from sfumato.transfer import to_device

NUM = 20_000
SAMPLINGS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "sigma": lambda num, rng: timesteps.sigma(num, rng, shift=3.0),
    "mode": lambda num, rng: timesteps.sigma(num, rng, shift=1.0, scheme="mode"),
    "logit_normal": lambda num, rng: timesteps.sigma(num, rng, shift=1.0, scheme="logit_normal"),
    "uniform": timesteps.uniform,
    "sigmoid": timesteps.sigmoid,
    "shifted": lambda num, rng: timesteps.shifted(num, rng, shift=3.1582),
    "size_shifted": lambda num, rng: timesteps.size_shifted(num, rng, num_tokens=1024),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_levels_are_within_the_schedule(name: str) -> None:
    levels = SAMPLINGS[name](NUM, rng())
    assert levels.shape == (NUM,)
    assert levels.dtype == torch.float32
    assert levels.min() >= 0
    assert levels.max() <= 1
    assert levels.std() > 0.1


@pytest.mark.parametrize("name", SAMPLINGS)
def test_one_draw_of_the_batchs_size_is_made(name: str) -> None:
    sampled, reference = rng(), rng()
    SAMPLINGS[name](3, sampled)
    if name in ("sigma", "mode", "uniform"):
        torch.rand(3, generator=reference)
    else:
        torch.randn(3, generator=reference)
    assert torch.equal(sampled.get_state(), reference.get_state())


def test_shift_moves_levels_towards_noise_and_leaves_the_ends() -> None:
    levels = torch.linspace(0, 1, 11)
    shifted = schedules.shift(levels, 3.0)
    assert torch.equal(schedules.shift(levels, 1.0), levels)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] > levels[1:-1]).all()


def test_median_of_shifted_levels_is_the_shift() -> None:
    median = timesteps.shifted(NUM, rng(), shift=3.0).median().item()
    assert median == pytest.approx(3 / 4, abs=0.01)


def test_a_restricted_range_keeps_the_order_of_levels() -> None:
    levels = timesteps.restrict(torch.tensor([0.0, 0.25, 1.0]), 0.2, 0.6)
    assert levels.tolist() == pytest.approx([0.2, 0.3, 0.6])


def test_mode_prefers_the_middle_levels() -> None:
    plain = weighting.density("none", NUM, rng())
    middle = weighting.density("mode", NUM, rng())
    for edge in (0.1, 0.2):
        assert ((middle - 0.5).abs() < edge).float().mean() > (
            (plain - 0.5).abs() < edge
        ).float().mean() + 0.02


def test_the_very_first_draw_of_mode_stays_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda num, generator: torch.zeros(num))
    levels = timesteps.sigma(2, rng(), shift=1.0, scheme="mode")
    assert levels.tolist() == [pytest.approx(0.001)] * 2


def test_cosmap_weights_integrate_to_one() -> None:
    levels = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    assert weighting.loss_weight("cosmap", levels).mean().item() == pytest.approx(1, abs=1e-3)


def test_image_length_sets_the_shift_between_its_two_anchors() -> None:
    assert schedules.shift_exponent(256) == pytest.approx(0.5)
    assert schedules.shift_exponent(4096) == pytest.approx(1.15)
    assert math.exp(schedules.shift_exponent(4096)) == pytest.approx(3.1582, abs=1e-4)


def test_sampling_levels_fall_from_one_to_zero() -> None:
    for mu in (None, 0.5, 1.15):
        levels = schedules.flow_sigmas(20, mu)
        assert levels.shape == (21,)
        assert levels[0] == 1
        assert levels[-1] == 0
        assert (levels.diff() < 0).all()


def test_perturbation_makes_input_noise_wider() -> None:
    plain = noise.draw((4, 16, 32, 32), rng())
    wider = noise.perturb(plain, 0.5, rng(1))
    assert wider.var().item() == pytest.approx(1 + 0.25, rel=0.03)
    assert noise.perturb(plain, 0.5, rng(1), is_random=True).var() < wider.var()


def test_moving_noise_keeps_its_numbers() -> None:
    drawn = noise.draw((2, 3), rng())
    assert torch.equal(to_device(drawn, torch.device("cpu")), drawn)
