"""Schedule, loss weights and mixing of discrete-time models equal those of two versions of sd-scripts.

They differ in one thing: the newer one has a debiased weight of its own for velocities, which is taken.
"""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato.diffusion import objectives, schedules, weighting
from sfumato.training.noising import SnrWeights
from tests.golden.derived import HERE, cases, error, inputs

TOLERANCE = 1e-6
VERSIONS = {"seed": 17, "head": 18}
NUMBERS = {version: load_file(HERE / f"b_ddpm_{version}.safetensors") for version in VERSIONS}
CASES = [(version, case) for version in VERSIONS for case in cases(f"b_ddpm_{version}")]
WEIGHTS = [(version, case) for version, case in CASES if case["id"].startswith("loss_weight/")]
SHAPE = (4, 4, 6, 8)


def weights(version: str, case: dict[str, Any]) -> SnrWeights:
    """Return the weights of a case, most of which are named by what they weigh."""
    _, name = case["id"].split("/")
    if name.startswith("combined"):
        return SnrWeights(
            is_velocity=case["v_parameterization"],
            min_snr_gamma=case["min_snr_gamma"],
            is_noise_like=case["scale_v_pred_loss_like_noise_pred"],
            velocity_like=case["v_pred_like_loss"],
            is_debiased=case["debiased_estimation_loss"],
        )
    return SnrWeights(
        is_velocity=case.get("v_prediction", name == "scale_v"),
        min_snr_gamma=case.get("gamma"),
        is_noise_like=name == "scale_v",
        velocity_like=case.get("v_pred_like_loss"),
        is_debiased=name.startswith("debiased"),
    )


def snr(version: str) -> Tensor:
    return schedules.signal_to_noise(schedules.ddpm_kept())[NUMBERS[version]["loss_weight/timesteps"]]


def test_every_recorded_case_is_checked() -> None:
    counts = {version: len(cases(f"b_ddpm_{version}")) for version in VERSIONS}
    print(f"ddpm cases: {counts}")
    assert counts == VERSIONS
    assert [case["id"] for _, case in CASES if "/" not in case["id"]] == ["tables", "add_noise"] * 2
    assert len(WEIGHTS) == len(CASES) - 4


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "zero_terminal"), [("ddpm", False), ("ddpm_zt", True)])
def test_schedules_equal_the_recorded_ones(version: str, name: str, zero_terminal: bool) -> None:
    recorded, betas = NUMBERS[version], schedules.ddpm_betas()
    if zero_terminal:
        betas = schedules.zero_terminal_betas(betas)
    assert error(betas, recorded[f"{name}/betas"]) < TOLERANCE
    assert error(schedules.ddpm_kept(zero_terminal), recorded[f"{name}/alphas_cumprod"]) < TOLERANCE


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_read_the_schedule_as_it_was_before_its_end_was_rescaled(version: str) -> None:
    ratios = schedules.signal_to_noise(schedules.ddpm_kept())
    assert error(ratios, NUMBERS[version]["ddpm/all_snr"]) < TOLERANCE
    assert error(ratios, NUMBERS[version]["ddpm_zt/all_snr_attr"]) < TOLERANCE


@pytest.mark.parametrize(("version", "case"), WEIGHTS, ids=[f"{v}-{c['id']}" for v, c in WEIGHTS])
def test_weighted_losses_equal_the_recorded_ones(version: str, case: dict[str, Any]) -> None:
    recorded, ratios = NUMBERS[version], snr(version)
    factors = weights(version, case)(ratios)
    assert factors is not None
    if (version, case["id"]) == ("seed", "loss_weight/combined4"):  # debiased as if it were noise
        factors = factors / weighting.debiased(ratios, True) * weighting.debiased(ratios)
    assert error(recorded["loss_weight/loss_in"] * factors, recorded[case["id"]]) < TOLERANCE


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "zero_terminal"), [("ddpm", False), ("ddpm_zt", True)])
def test_noisy_latents_and_velocities_equal_the_recorded_ones(
    version: str, name: str, zero_terminal: bool
) -> None:
    latents, noise = inputs("bddpm.lat", SHAPE), inputs("bddpm.noise", SHAPE)
    steps = next(case["timesteps"] for _, case in CASES if case["id"] == "add_noise")
    kept = schedules.ddpm_kept(zero_terminal)[torch.tensor(steps)]
    noisy = objectives.ddpm_noisy(latents, noise, kept)
    velocity = objectives.ddpm_velocity(latents, noise, kept)
    assert error(noisy, NUMBERS[version][f"{name}/add_noise"]) < TOLERANCE
    assert error(velocity, NUMBERS[version][f"{name}/velocity"]) < TOLERANCE
