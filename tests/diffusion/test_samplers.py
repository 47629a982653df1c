"""Samplers: exact where the path is straight, of their order where it is not, for both kinds of models."""

import pytest
import torch
from torch import Tensor

from sfumato.diffusion import samplers, schedules

SAMPLERS = {"euler": samplers.euler, "heun": samplers.heun}
SPREAD = 0.5  # standard deviation of the toy data


def flow_denoise(x: Tensor, sigma: float) -> Tensor:
    """Return E[x0 | x] for normal data of deviation SPREAD on straight paths."""
    signal = (1 - sigma) * SPREAD**2
    return x * signal / ((1 - sigma) * signal + sigma**2)


def exploding_denoise(x: Tensor, sigma: float) -> Tensor:
    """Return E[x0 | x] for the same data with noise of deviation sigma added."""
    return x * SPREAD**2 / (SPREAD**2 + sigma**2)


def start() -> Tensor:
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_enough_for_a_single_picture(name: str) -> None:
    picture = torch.full((2, 4, 8, 8), 0.3, dtype=torch.float64)
    made = SAMPLERS[name](lambda x, sigma: picture, start(), torch.tensor([1.0, 0.0]))
    assert torch.allclose(made, picture)


@pytest.mark.parametrize("name", SAMPLERS)
def test_flow_sampling_turns_noise_into_data(name: str) -> None:
    made = SAMPLERS[name](flow_denoise, start(), schedules.flow_sigmas(200))
    assert torch.allclose(made, start() * SPREAD, atol=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
def test_exploding_noise_is_sampled_by_the_same_function(name: str) -> None:
    top = 20.0
    levels = torch.logspace(1.30103, -2, 200)
    made = SAMPLERS[name](exploding_denoise, start() * (SPREAD**2 + top**2) ** 0.5, levels)
    assert torch.allclose(made, start() * SPREAD, atol=0.03)


def test_heun_errs_less_than_euler_and_in_second_order() -> None:
    def worst(name: str, steps: int) -> float:
        levels = torch.linspace(0.999, 0.05, steps + 1, dtype=torch.float64)
        variance = ((1 - levels) * SPREAD) ** 2 + levels**2
        expected = start() * (variance[-1] / variance[0]).sqrt()
        return (SAMPLERS[name](flow_denoise, start(), levels) - expected).abs().max().item()

    assert worst("euler", 20) / worst("euler", 40) == pytest.approx(2, rel=0.2)
    assert worst("heun", 20) / worst("heun", 40) == pytest.approx(4, rel=0.3)
    assert worst("heun", 20) < worst("euler", 20) / 5


@pytest.mark.parametrize(("name", "calls"), [("euler", 4), ("heun", 7)])
def test_steps_are_reported_and_the_model_is_asked_no_more_than_needed(name: str, calls: int) -> None:
    asked: list[float] = []
    steps: list[tuple[int, Tensor]] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return flow_denoise(x, sigma)

    made = SAMPLERS[name](
        denoise, start(), schedules.flow_sigmas(4), on_step=lambda i, x: steps.append((i, x))
    )
    assert len(asked) == calls
    assert [i for i, _ in steps] == [0, 1, 2, 3]
    assert steps[-1][1] is made
    assert min(asked) > 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_latents_keep_their_format(name: str) -> None:
    made = SAMPLERS[name](flow_denoise, start().bfloat16(), schedules.flow_sigmas(3))
    assert made.dtype == torch.bfloat16
