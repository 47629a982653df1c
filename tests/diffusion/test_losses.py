"""Losses: what they are near zero and far from it, and what a mask lets through."""

import pytest
import torch

from sfumato.diffusion import guidance, losses, objectives

ZERO = torch.zeros(2, 1, 1, 1)


def test_huber_is_square_below_its_threshold_and_linear_above() -> None:
    threshold = torch.tensor([0.1, 0.2])
    small, large = ZERO + 1e-3, ZERO + 100.0
    near = losses.huber(small.double(), ZERO.double(), threshold.double()).flatten()
    far = losses.huber(large, ZERO, threshold).flatten()
    assert torch.allclose(near, torch.full((2,), 1e-6, dtype=torch.float64), rtol=1e-3)
    assert torch.allclose(far, 2 * threshold * 100, rtol=0.01)


def test_smooth_l1_is_huber_over_its_threshold() -> None:
    threshold, difference = torch.tensor([0.3, 0.7]), torch.randn(2, 4, 3, 3)
    smooth = losses.smooth_l1(difference, torch.zeros_like(difference), threshold)
    huber = losses.huber(difference, torch.zeros_like(difference), threshold)
    assert torch.allclose(huber, smooth * threshold.reshape(-1, 1, 1, 1))


def test_exponential_threshold_runs_from_scale_to_its_last_value() -> None:
    limits = losses.exponential_threshold(torch.tensor([0.0, 500.0, 1000.0]), 0.04, 2.0)
    assert limits.tolist() == pytest.approx([2.0, 2.0 * 0.2, 2.0 * 0.04])


def test_snr_threshold_falls_with_noise() -> None:
    limits = losses.snr_threshold(torch.tensor([0.0, 1.0, 1e6]), 0.1)
    assert limits.tolist() == pytest.approx([1.0, 0.9 / 4 + 0.1, 0.1])


def test_a_mask_is_averaged_down_to_latents() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :4, :8] = 1
    masked = losses.masked(torch.ones(1, 2, 2, 2), mask)
    assert masked[0, 0].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    assert torch.equal(masked[0, 0], masked[0, 1])


def test_guidance_of_one_is_the_conditional_prediction() -> None:
    conditional, unconditional = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    at = [guidance.classifier_free(conditional, unconditional, scale) for scale in (0.0, 1.0, 2.0)]
    assert torch.allclose(at[0], unconditional, atol=1e-6)
    assert torch.allclose(at[1], conditional, atol=1e-6)
    assert torch.allclose(at[2], 2 * conditional - unconditional, atol=1e-6)


def test_a_true_velocity_leads_back_to_the_clean_latents() -> None:
    latents, noise, sigmas = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0.1, 0.5, 1.0])
    noisy = objectives.flow_noisy(latents, noise, sigmas)
    velocity = objectives.flow_target(latents, noise)
    assert torch.allclose(objectives.flow_clean(velocity, noisy, sigmas), latents, atol=1e-6)
