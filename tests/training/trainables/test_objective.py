"""One training step of a flow model: what it depends on, what weights and masks do to it."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.errors import UserError
from sfumato.models.interface.family import Prediction
from sfumato.training.trainables.noising import FlowNoising
from sfumato.training.trainables.objective import (
    ElementLoss,
    Objective,
    StepLoss,
    objective_for,
)

SHAPE = (3, 16, 4, 6)
LATENTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
RAW = FlowNoising(sampling="uniform", interpretation="raw")


def run_of(*sections: Any) -> Run:
    return Run("some_script", "some_family", [FlowConfig(), LossConfig(), NoiseConfig(), *sections])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step(objective: Objective, seed: int = 0, **options: Any) -> StepLoss:
    return objective(lambda noisy, timesteps: torch.zeros_like(noisy), LATENTS, rng(seed), **options)


def test_a_step_is_a_function_of_its_generator() -> None:
    objective = Objective(RAW, ElementLoss())
    torch.manual_seed(1)
    first = step(objective)
    torch.manual_seed(2)
    again, other = step(objective), step(objective, seed=1)
    assert torch.equal(first.per_sample, again.per_sample)
    assert torch.equal(first.timesteps, again.timesteps)
    assert not torch.equal(first.per_sample, other.per_sample)


def test_predicting_the_velocity_costs_nothing() -> None:
    noise = torch.randn(SHAPE, generator=rng())
    for reading in ("raw", "additive", "sigma_scaled"):

        def perfect(noisy: Tensor, timesteps: Tensor, reading: str = reading) -> Tensor:
            target = noise - LATENTS
            sigma = (timesteps / 1000).reshape(-1, 1, 1, 1)
            answers = {"raw": target, "additive": target - noisy, "sigma_scaled": (noisy - target) / sigma}
            return answers[reading]

        noising = dataclasses.replace(RAW, interpretation=reading)
        loss = Objective(noising, ElementLoss())(perfect, LATENTS, rng())
        assert loss.per_sample.max() < 1e-9


def test_the_model_is_shown_the_mixture_at_its_timestep() -> None:
    seen: list[Tensor] = []

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        seen.extend((noisy, timesteps))
        return noisy

    loss = Objective(RAW, ElementLoss())(predict, LATENTS.bfloat16(), rng())
    noisy, timesteps = seen
    sigma = (timesteps / 1000).reshape(-1, 1, 1, 1)
    noise = torch.randn(SHAPE, generator=rng())
    expected = (1 - sigma) * LATENTS.bfloat16().float() + sigma * noise
    assert noisy.dtype == torch.bfloat16
    assert torch.equal(noisy, expected.bfloat16())
    assert torch.equal(timesteps, loss.timesteps)
    assert loss.per_sample.dtype == torch.float32


def test_weights_scale_each_image_by_itself() -> None:
    objective = Objective(RAW, ElementLoss())
    plain = step(objective).per_sample
    weighted = step(objective, weights=torch.tensor([1.0, 0.5, 0.0])).per_sample
    assert torch.equal(weighted, plain * torch.tensor([1.0, 0.5, 0.0]))


def test_a_mask_of_pixels_counts_only_what_it_shows() -> None:
    objective = Objective(RAW, ElementLoss())
    half = torch.zeros(3, 1, 32, 48)
    half[..., :24] = 1
    apart = (torch.randn(SHAPE, generator=rng()) - LATENTS) ** 2  # from the answer 0 to the velocity
    shown = apart[..., :3].sum((1, 2, 3)) / apart[0].numel()  # what is hidden counts as a loss of 0
    assert torch.allclose(step(objective, mask=half).per_sample, shown)
    latent_half = torch.zeros(3, 1, 4, 6)
    latent_half[..., :3] = 1
    assert torch.allclose(step(objective, mask=half).per_sample, step(objective, mask=latent_half).per_sample)
    whole = step(objective).per_sample
    both = step(objective, mask=half).per_sample + step(objective, mask=1 - half).per_sample
    assert torch.allclose(both, whole)


def test_a_mask_between_nothing_and_all_scales_the_loss() -> None:
    objective = Objective(RAW, ElementLoss())
    quarter = step(objective, mask=torch.full((3, 1, 4, 6), 0.25)).per_sample
    assert torch.allclose(quarter, 0.25 * step(objective).per_sample)


def test_only_the_input_takes_the_perturbation() -> None:
    plain, perturbed = RAW(LATENTS, rng()), dataclasses.replace(RAW, perturbation=0.5)(LATENTS, rng())
    drawn = rng()
    noise, sigma = torch.randn(SHAPE, generator=drawn), torch.rand(3, generator=drawn)
    xi = torch.randn(SHAPE, generator=drawn)
    level = sigma.reshape(-1, 1, 1, 1)
    assert torch.equal(perturbed.levels, sigma)
    assert torch.equal(plain.target, noise - LATENTS)
    assert torch.equal(perturbed.target, noise - LATENTS)
    assert torch.allclose(plain.noisy, (1 - level) * LATENTS + level * noise)
    assert torch.allclose(perturbed.noisy, (1 - level) * LATENTS + level * (noise + 0.5 * xi))


def test_gradients_reach_the_prediction() -> None:
    output = torch.zeros(SHAPE, requires_grad=True)
    loss = Objective(FlowNoising(scheme="cosmap"), ElementLoss("huber"))(lambda *_: output, LATENTS, rng())
    loss.per_sample.mean().backward()
    assert output.grad is not None
    assert output.grad.abs().sum() > 0
    assert not loss.timesteps.requires_grad


@pytest.mark.parametrize("sampling", ["sigma", "uniform", "sigmoid", "shift", "flux_shift"])
def test_timesteps_stay_within_the_range_asked_for(sampling: Any) -> None:
    run = run_of(FlowConfig(timestep_sampling=sampling), NoiseConfig(min_timestep=200, max_timestep=400))
    noising = objective_for(run, Prediction.FLOW).noising
    assert isinstance(noising, FlowNoising)
    levels = noising.levels(torch.Size((2000, 16, 8, 8)), rng())
    assert 0.2 <= levels.min() < 0.25
    assert 0.35 < levels.max() <= 0.4


def test_larger_images_are_trained_at_more_noise() -> None:
    noising = FlowNoising(sampling="flux_shift", patch=2)
    small, large = (noising.levels(torch.Size((500, 16, side, side)), rng()).mean() for side in (32, 128))
    assert large > small + 0.1


def test_options_reach_the_objective() -> None:
    flow = FlowConfig(
        timestep_sampling="shift",
        model_prediction_type="raw",
        weighting_scheme="cosmap",
        discrete_flow_shift=3.1582,
        sigmoid_scale=1.5,
        logit_mean=0.1,
        logit_std=0.9,
        mode_scale=1.1,
    )
    loss = LossConfig(loss_type="smooth_l1", huber_schedule="exponential", huber_c=0.2, huber_scale=0.5)
    extra = NoiseConfig(ip_noise_gamma=0.1, ip_noise_gamma_random_strength=True, max_timestep=900)
    assert objective_for(run_of(flow, loss, extra), Prediction.FLOW, patch=1) == Objective(
        FlowNoising("shift", "raw", "cosmap", 3.1582, 1.5, 0.1, 0.9, 1.1, 1, 0.0, 0.9, 0.1, True),
        ElementLoss("smooth_l1", "exponential", 0.2, 0.5),
    )


def test_defaults_are_those_of_the_options() -> None:
    assert objective_for(run_of(), Prediction.FLOW) == Objective(FlowNoising(), ElementLoss())


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ([LossConfig(loss_type="huber")], ("--huber_schedule is snr", "exponential")),
        ([NoiseConfig(min_timestep=500, max_timestep=500)], ("--min_timestep is 500", "smaller")),
    ],
)
def test_contradictions_are_one_line(sections: list[Any], words: tuple[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        objective_for(run_of(*sections), Prediction.FLOW)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
