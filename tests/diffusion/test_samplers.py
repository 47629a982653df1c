"""Samplers: exact where the path is straight, of their order where it is not, for both kinds of models."""

import pytest
import torch
from torch import Tensor

from sfumato.diffusion import samplers, schedules

SAMPLERS = {"euler": samplers.euler, "heun": samplers.heun}
EXACT = SAMPLERS | {
    "dpm_2": samplers.dpm_2,
    "lms": samplers.lms,
    "dpm_solver": samplers.dpm_solver,
    "dpm_solver_pp": samplers.dpm_solver_pp,
    "dpm_solver_pp_single": samplers.dpm_solver_pp_single,
}
ANCESTRAL = {"euler_ancestral": samplers.euler_ancestral, "dpm_2_ancestral": samplers.dpm_2_ancestral}
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
def test_one_step_is_enough_for_a_single_image(name: str) -> None:
    image = torch.full((2, 4, 8, 8), 0.3, dtype=torch.float64)
    made = SAMPLERS[name](lambda x, sigma: image, start(), torch.tensor([1.0, 0.0]))
    assert torch.allclose(made, image)


@pytest.mark.parametrize("name", SAMPLERS)
def test_flow_sampling_turns_noise_into_data(name: str) -> None:
    made = SAMPLERS[name](flow_denoise, start(), schedules.flow_sigmas(200))
    assert torch.allclose(made, start() * SPREAD, atol=0.03)


@pytest.mark.parametrize("name", EXACT)
def test_exploding_noise_is_sampled_by_the_same_functions(name: str) -> None:
    top = 20.0
    levels = torch.logspace(1.30103, -2, 200)
    made = EXACT[name](exploding_denoise, start() * (SPREAD**2 + top**2) ** 0.5, levels)
    assert torch.allclose(made, start() * SPREAD, atol=0.03)


@pytest.mark.parametrize("name", ["heun", "dpm_2", "lms", "dpm_solver", "dpm_solver_pp"])
def test_higher_orders_err_less_than_euler(name: str) -> None:
    levels = torch.logspace(1, -1, 31, dtype=torch.float64)
    expected = start() * ((SPREAD**2 + levels[-1] ** 2) / (SPREAD**2 + levels[0] ** 2)).sqrt()

    def worst(one: str) -> float:
        return (EXACT[one](exploding_denoise, start(), levels) - expected).abs().max().item()

    assert worst(name) < worst("euler") / 4


def test_plms_is_exact_for_slopes_that_are_cubic_in_even_levels() -> None:
    levels = torch.linspace(1, 0.2, 9, dtype=torch.float64)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x - sigma * torch.full_like(x, 3 * sigma**2 - 2 * sigma)

    moved = samplers.plms(denoise, start(), levels) - start()
    exact = (0.2**3 - 0.2**2) - (1 - 1)
    assert (moved - exact).abs().max() < 0.01
    assert (samplers.euler(denoise, start(), levels) - start() - exact).abs().max() > 0.05


@pytest.mark.parametrize("name", ANCESTRAL)
def test_added_noise_leaves_the_distribution_and_comes_from_the_generator(name: str) -> None:
    levels = torch.cat([torch.logspace(1, -1.5, 100), torch.zeros(1)])
    noisy = torch.randn((4, 4, 32, 32), generator=torch.Generator().manual_seed(1)) * 10

    def make(seed: int) -> Tensor:
        return ANCESTRAL[name](exploding_denoise, noisy, levels, torch.Generator().manual_seed(seed))

    assert make(0).std().item() == pytest.approx(SPREAD, rel=0.05)
    assert torch.equal(make(0), make(0))
    assert not torch.allclose(make(0), make(1), atol=0.1)
    with pytest.raises(ValueError, match="give it a generator"):
        ANCESTRAL[name](exploding_denoise, noisy, levels)


def test_heun_errs_less_than_euler_and_in_second_order() -> None:
    def worst(name: str, steps: int) -> float:
        levels = torch.linspace(0.999, 0.05, steps + 1, dtype=torch.float64)
        variance = ((1 - levels) * SPREAD) ** 2 + levels**2
        expected = start() * (variance[-1] / variance[0]).sqrt()
        return (SAMPLERS[name](flow_denoise, start(), levels) - expected).abs().max().item()

    assert worst("euler", 20) / worst("euler", 40) == pytest.approx(2, rel=0.2)
    assert worst("heun", 20) / worst("heun", 40) == pytest.approx(4, rel=0.3)
    assert worst("heun", 20) < worst("euler", 20) / 5


@pytest.mark.parametrize(
    ("name", "calls"),
    [("euler", 4), ("heun", 7), ("dpm_2", 7), ("lms", 4), ("dpm_solver_pp", 4), ("dpm_solver_pp_single", 4)],
)
def test_steps_are_reported_and_the_model_is_asked_no_more_than_needed(name: str, calls: int) -> None:
    asked: list[float] = []
    steps: list[tuple[int, Tensor]] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return flow_denoise(x, sigma)

    made = EXACT[name](denoise, start(), schedules.flow_sigmas(4), on_step=lambda i, x: steps.append((i, x)))
    assert len(asked) == calls
    assert [i for i, _ in steps] == [0, 1, 2, 3]
    assert steps[-1][1] is made
    assert min(asked) > 0


@pytest.mark.parametrize("name", EXACT)
def test_latents_keep_their_format(name: str) -> None:
    made = EXACT[name](flow_denoise, start().bfloat16(), schedules.flow_sigmas(3))
    assert made.dtype == torch.bfloat16
