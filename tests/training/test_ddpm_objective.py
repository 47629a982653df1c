"""One step of training a discrete-time model: what it is shown and should answer, what options change."""

import logging
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.diffusion import schedules, weighting
from sfumato.models.interface.family import Prediction
from sfumato.training.trainables.noising import DdpmNoising, NoiseShape, SnrWeights
from sfumato.training.trainables.objective import (
    ElementLoss,
    Objective,
    objective_for,
)

SHAPE = (3, 4, 8, 6)
LATENTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
KINDS = (Prediction.EPSILON, Prediction.VELOCITY)


def run_of(*sections: Any) -> Run:
    return Run("some_script", "some_family", [LossConfig(), NoiseConfig(), *sections])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def losses(*sections: Any, prediction: Prediction = Prediction.EPSILON) -> Tensor:
    objective = objective_for(run_of(*sections), prediction)
    return objective(lambda noisy, timesteps: torch.zeros_like(noisy), LATENTS, rng()).per_sample


def test_the_right_answer_costs_nothing() -> None:
    noise = torch.randn(SHAPE, generator=rng())

    def answer(noisy: Tensor, timesteps: Tensor, is_velocity: bool) -> Tensor:
        kept = schedules.ddpm_kept()[timesteps.long()].reshape(-1, 1, 1, 1)
        return kept.sqrt() * noise - (1 - kept).sqrt() * LATENTS if is_velocity else noise

    for kind in KINDS:
        objective = objective_for(run_of(), kind)
        is_velocity = kind is Prediction.VELOCITY
        step = objective(lambda x, t, v=is_velocity: answer(x, t, v), LATENTS, rng())
        assert step.per_sample.max() < 1e-9


def test_the_model_is_shown_whole_timesteps_and_latents_of_constant_variance() -> None:
    seen: list[Tensor] = []

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        seen.extend((noisy, timesteps))
        return noisy

    latents = torch.randn((64, 4, 16, 16), generator=rng(1))
    step = objective_for(run_of(), Prediction.EPSILON)(predict, latents.bfloat16(), rng())
    noisy, timesteps = seen
    assert noisy.dtype == torch.bfloat16
    assert noisy.float().var((1, 2, 3)).tolist() == pytest.approx([1.0] * 64, abs=0.3)
    assert torch.equal(timesteps, timesteps.round())
    assert (timesteps.min() < 100, timesteps.max() > 900, timesteps.max() <= 999) == (True, True, True)
    assert torch.equal(step.timesteps, timesteps)


@pytest.mark.parametrize(
    "options",
    [
        NoiseConfig(noise_offset=0.1),
        NoiseConfig(noise_offset=0.1, noise_offset_random_strength=True),
        NoiseConfig(noise_offset=0.1, adaptive_noise_scale=0.1),
        NoiseConfig(multires_noise_iterations=4),
        NoiseConfig(zero_terminal_snr=True),
        NoiseConfig(max_timestep=100),
        LossConfig(min_snr_gamma=0.1),
        LossConfig(debiased_estimation_loss=True),
        LossConfig(scale_v_pred_loss_like_noise_pred=True),
        LossConfig(loss_type="l1"),
        LossConfig(loss_type="huber"),
    ],
)
def test_every_option_changes_the_loss(options: Any) -> None:
    plain, changed = losses(prediction=Prediction.VELOCITY), losses(options, prediction=Prediction.VELOCITY)
    assert changed.isfinite().all()
    assert not torch.allclose(plain, changed, rtol=1e-3)


def test_weights_multiply() -> None:
    noising = DdpmNoising(weights=SnrWeights(min_snr_gamma=5.0, is_debiased=True))
    noised = noising(LATENTS, rng())
    assert noised.snr is not None
    expected = weighting.min_snr(noised.snr, 5.0) * weighting.debiased(noised.snr)
    factors = noising.weigh(noised)
    assert factors is not None
    assert torch.allclose(factors, expected)
    weighted = losses(LossConfig(min_snr_gamma=5.0, debiased_estimation_loss=True))
    assert torch.allclose(weighted, losses() * expected)


def test_the_noisiest_step_of_a_zero_terminal_schedule_is_pure_noise_and_counts_finitely() -> None:
    for kind in KINDS:
        run = run_of(
            NoiseConfig(zero_terminal_snr=True, min_timestep=999),
            LossConfig(min_snr_gamma=5.0, debiased_estimation_loss=True, loss_type="huber"),
        )
        noising = objective_for(run, kind).noising
        noised = noising(LATENTS, rng())
        assert torch.equal(noised.noisy, torch.randn(SHAPE, generator=rng()))
        step = objective_for(run, kind)(lambda noisy, _: noisy * 0.5, LATENTS, rng())
        assert step.per_sample.isfinite().all()
        assert step.per_sample.min() > 0


def test_a_step_is_a_function_of_its_generator_whatever_pythons_own_says() -> None:

    options = NoiseConfig(multires_noise_iterations=6, ip_noise_gamma=0.1)
    random.seed(1)
    state, first = random.getstate(), losses(options)
    assert random.getstate() == state
    random.seed(2)
    assert torch.equal(first, losses(options))


def test_only_the_input_takes_the_perturbation() -> None:
    drawn = rng()
    noise, steps = torch.randn(SHAPE, generator=drawn), torch.randint(0, 1000, (3,), generator=drawn)
    xi = torch.randn(SHAPE, generator=drawn)
    kept = schedules.ddpm_kept()[steps].reshape(-1, 1, 1, 1)
    targets = {False: noise, True: kept.sqrt() * noise - (1 - kept).sqrt() * LATENTS}
    for is_velocity, target in targets.items():
        for strength in (0.0, 0.5):
            noised = DdpmNoising(is_velocity=is_velocity, perturbation=strength)(LATENTS, rng())
            shown = kept.sqrt() * LATENTS + (1 - kept).sqrt() * (noise + strength * xi)
            assert torch.allclose(noised.target, target)
            assert torch.allclose(noised.noisy, shown)


def test_levels_are_the_ratio_of_noise_to_signal() -> None:
    noised = DdpmNoising()(LATENTS, rng())
    kept = schedules.ddpm_kept()[noised.timesteps.long()]
    assert torch.allclose(noised.levels, ((1 - kept) / kept).sqrt())


def test_dark_latents_widen_the_offset_as_bright_ones_do() -> None:
    shape = NoiseShape(offset=0.1, adaptive_scale=0.5)
    plain = NoiseShape()(LATENTS, rng(), _ratios())
    bright, dark = (shape(torch.full(SHAPE, level), rng(), _ratios()) - plain for level in (2.0, -2.0))
    narrow = NoiseShape(offset=0.1)(LATENTS, rng(), _ratios()) - plain
    assert torch.allclose(bright, 11 * narrow, atol=1e-5)  # 0.1 + 0.5 * 2 instead of 0.1
    assert torch.allclose(dark, bright)


def test_offset_noise_moves_whole_channels() -> None:
    plain, moved = NoiseShape(), NoiseShape(offset=0.5)
    difference = moved(LATENTS, rng(), _ratios()) - plain(LATENTS, rng(), _ratios())
    assert torch.allclose(difference, difference[..., :1, :1].expand(SHAPE), atol=1e-6)
    assert 0.1 < difference[..., 0, 0].std() < 1.0


def test_coarser_noises_keep_unit_deviation_and_correlate_neighbours() -> None:
    latents = torch.zeros(2, 4, 32, 32)
    made = NoiseShape(pyramid_levels=6, pyramid_discount=0.6)(latents, rng(), _ratios())
    assert made.std().item() == pytest.approx(1, abs=1e-5)
    assert (made[..., 1:] * made[..., :-1]).mean() > 0.1


def test_options_reach_the_objective() -> None:
    extra = NoiseConfig(0.1, True, 6, 0.4, 0.05, True, 0.02, True, 10, 900)
    loss = LossConfig(
        loss_type="smooth_l1",
        huber_c=0.2,
        huber_scale=0.5,
        min_snr_gamma=5.0,
        scale_v_pred_loss_like_noise_pred=True,
        debiased_estimation_loss=True,
    )
    assert objective_for(run_of(loss, extra), Prediction.VELOCITY) == Objective(
        DdpmNoising(
            is_velocity=True,
            zero_terminal=True,
            shape=NoiseShape(0.1, True, 0.02, 6, 0.4),
            weights=SnrWeights(True, 5.0, True, None, True),
            low=10,
            high=900,
            perturbation=0.05,
            is_perturbation_random=True,
        ),
        ElementLoss("smooth_l1", "snr", 0.2, 0.5),
    )
    assert objective_for(run_of(), Prediction.EPSILON) == Objective(DdpmNoising(), ElementLoss())


def test_a_zero_terminal_schedule_for_a_noise_predicting_model_is_remarked_upon(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(logging.getLogger("sfumato"), "propagate", True)
    for kind in KINDS:
        objective_for(run_of(NoiseConfig(zero_terminal_snr=True)), kind)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["--zero_terminal_snr"]


def _ratios() -> random.Random:

    return random.Random(0)


def test_tables_that_a_preview_made_first_can_be_trained_with() -> None:
    for table in (schedules.ddpm_betas, schedules.ddpm_kept, schedules.ddpm_sigmas):
        table.cache_clear()
    with torch.inference_mode():
        schedules.ddpm_sigmas(False)
    factor = torch.ones(1, requires_grad=True)
    run = run_of(LossConfig(loss_type="huber", min_snr_gamma=5.0))
    step = objective_for(run, Prediction.EPSILON)(lambda noisy, _: noisy * factor, LATENTS, rng())
    step.per_sample.mean().backward()
    assert factor.grad is not None
    assert factor.grad.isfinite().all()
