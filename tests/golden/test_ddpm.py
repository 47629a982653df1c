"""Schedule, loss weights and mixing of discrete-time models equal those of two versions of sd-scripts.

They differ in one thing: the newer one has a debiased weight of its own for velocities, which is taken.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.diffusion import objectives, schedules, weighting
from sfumato.training.trainables.noising import SnrWeights
from tests.golden.derived import arrays, cases, error, exists, inputs

TOLERANCE = 1e-6
VERSIONS = [version for version in ("seed", "head") if exists(f"b_ddpm_{version}")]
NUMBERS = {version: arrays(f"b_ddpm_{version}") for version in VERSIONS}
CASES = [(version, case) for version in VERSIONS for case in cases(f"b_ddpm_{version}")]
WEIGHTS = [(version, case) for version, case in CASES if case["id"].startswith("loss_weight/")]
MIXED = [(version, case) for version, case in CASES if "inputs" in case]


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
    print(f"ddpm cases: {len(CASES)}")
    of_the_schedule = [entry[1]["id"] for entry in CASES if entry not in WEIGHTS + MIXED]
    assert of_the_schedule == ["tables"] * len(VERSIONS)


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
    if version == "seed" and case.get("debiased_estimation_loss") and case["v_parameterization"]:
        # It is debiased there as if it were noise.
        factors = factors / weighting.debiased(ratios, True) * weighting.debiased(ratios)
    assert error(recorded["loss_weight/loss_in"] * factors, recorded[case["id"]]) < TOLERANCE


@pytest.mark.parametrize(("version", "case"), MIXED, ids=[version for version, _ in MIXED])
@pytest.mark.parametrize(("name", "zero_terminal"), [("ddpm", False), ("ddpm_zt", True)])
def test_noisy_latents_and_velocities_equal_the_recorded_ones(
    version: str, case: dict[str, Any], name: str, zero_terminal: bool
) -> None:
    shape = NUMBERS[version][f"{name}/add_noise"].shape
    latents, noise = (inputs(key, shape) for key in case["inputs"])
    kept = schedules.ddpm_kept(zero_terminal)[torch.tensor(case["timesteps"])]
    noisy = objectives.ddpm_noisy(latents, noise, kept)
    velocity = objectives.ddpm_velocity(latents, noise, kept)
    assert error(noisy, NUMBERS[version][f"{name}/add_noise"]) < TOLERANCE
    assert error(velocity, NUMBERS[version][f"{name}/velocity"]) < TOLERANCE
