"""A training step of Stable Diffusion 3 equals that of two versions of sd-scripts.

They draw noise levels in opposite directions.
"""

from typing import Any

import pytest
import torch

from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.diffusion import objectives
from sfumato.diffusion.schedules import NUM_TIMESTEPS
from sfumato.models.families.sd3.options import Sd3NoiseOptions
from sfumato.models.families.sd3.schedule import sampling_sigmas
from sfumato.models.registry.families import family_for
from sfumato.training.trainables.denoising import objective_of
from sfumato.training.trainables.noising import FlowNoising, Noised
from sfumato.training.trainables.objective import ElementLoss
from tests.golden.derived import arrays, cases, error, inputs

TOLERANCE = 1e-6
VERSIONS = {"seed": "2024", "head": "2026"}
CASES = [(version, case) for version in VERSIONS for case in cases(f"b_sd3_{version}")]


def noising(version: str, case: dict[str, Any]) -> FlowNoising:
    """Return what the options make of a case."""
    named = {name: case[name] for name in ("weighting_scheme", "logit_mean", "logit_std", "mode_scale")}
    shift = {"training_shift": case["shift"]} if version == "head" else {}
    options = Sd3NoiseOptions(sd3_schedule=VERSIONS[version], **named, **shift)
    extra = NoiseConfig(min_timestep=case["min_timestep"], max_timestep=case["max_timestep"])
    run = Run("sd3_train_network", "sd3", [options, extra, LossConfig()])
    found = objective_of(run, family_for(run)).noising
    assert isinstance(found, FlowNoising)
    return found


@pytest.mark.parametrize(
    ("version", "case"), CASES, ids=[f"{version}-{case['id']}" for version, case in CASES]
)
def test_step_equals_the_recorded_one(version: str, case: dict[str, Any]) -> None:
    recorded, name, maker = arrays(f"b_sd3_{version}"), case["id"], noising(version, case)
    latents, plain = (inputs(f"bsd3.{name}.{what}", case["shape"]) for what in ("latents", "noise"))

    sigmas = maker.levels(latents.shape, torch.Generator().manual_seed(case["seed"]))

    assert error(sigmas, case["sigmas"]) < TOLERANCE
    assert error(sigmas * NUM_TIMESTEPS, case["timesteps"]) < TOLERANCE
    noisy = objectives.flow_noisy(latents, plain, sigmas)
    assert error(noisy, recorded[f"{name}/noisy"]) < TOLERANCE
    noised = Noised(noisy, latents, sigmas, sigmas * NUM_TIMESTEPS)
    reading = maker.read(inputs(f"bsd3.{name}.model_pred", case["shape"]), noised)
    assert error(reading, recorded[f"{name}/pred"]) < TOLERANCE
    weights = maker.weigh(noised)
    assert weights is not None
    assert error(weights, case["weighting"]) < TOLERANCE
    losses = ElementLoss()(reading, noised.target, noised.timesteps, sigmas).mean((1, 2, 3)) * weights
    assert error(losses, case["per_sample_loss"]) < TOLERANCE


def test_the_loss_compares_clean_latents() -> None:
    latents = torch.ones(2, 16, 4, 4)
    noised = noising("head", cases("b_sd3_head")[0])(latents, torch.Generator().manual_seed(0))
    assert torch.equal(noised.target, latents)


def test_a_clean_image_has_a_finite_weight() -> None:
    """A whole timestep of 0 can be drawn, for which one scheme's weight would be infinite."""
    case = next(case for case in cases("b_sd3_head") if case["weighting_scheme"] == "sigma_sqrt")
    noised = Noised(*[torch.zeros(1, 16, 2, 2)] * 2, torch.zeros(1), torch.zeros(1))
    weights = noising("head", case).weigh(noised)
    assert weights is not None
    assert weights.isfinite().all()


def test_sampling_visits_the_levels_of_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    torch.testing.assert_close(sampling_sigmas(7), scheduler.sigmas, rtol=0, atol=2e-6)
