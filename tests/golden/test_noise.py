"""Noise options draw the numbers that sd-scripts draws, in its order, from both random generators."""

import random
from typing import Any

import pytest
import torch

from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.diffusion import noise
from sfumato.models.interface.family import Prediction
from sfumato.training.trainables.noising import DdpmNoising
from sfumato.training.trainables.objective import objective_for
from tests.golden.derived import arrays, assert_recorded, cases, error, inputs

TOLERANCE = 1e-6
NUMBERS = arrays("b_noise_seed")
CASES = cases("b_noise_seed")
STEPS = [case for case in CASES if "settings" in case]
PYRAMIDS = [case for case in CASES if "iterations" in case]


def test_every_recorded_case_is_checked() -> None:
    print(f"noise cases: {len(STEPS)} steps, {len(PYRAMIDS)} pyramids")
    assert len(STEPS) + len(PYRAMIDS) == len(CASES)


@pytest.mark.parametrize("case", STEPS, ids=[case["id"] for case in STEPS])
def test_a_step_draws_what_was_recorded(case: dict[str, Any]) -> None:
    run = Run("some_script", "some_family", [LossConfig(), NoiseConfig(**case["settings"])])
    noising = objective_for(run, Prediction.EPSILON).noising
    assert isinstance(noising, DdpmNoising)
    name, latents = case["id"], 0.8 * inputs(f"bnoise.{case['id']}", case["shape"]) + 0.3
    rng, ratios = torch.Generator().manual_seed(case["seed"]), random.Random(case["seed"])

    noised = noising(latents, rng, ratios)

    assert noised.timesteps.tolist() == case["timesteps"]
    assert_recorded(noised.target, NUMBERS, f"{name}/noise", TOLERANCE)
    assert_recorded(noised.noisy, NUMBERS, f"{name}/noisy", TOLERANCE)
    assert torch.rand(1, generator=rng).item() == case["next_torch_rand"]
    assert ratios.random() == case["next_python_random"]


@pytest.mark.parametrize("case", PYRAMIDS, ids=[case["id"] for case in PYRAMIDS])
def test_coarser_noises_equal_the_recorded_ones(case: dict[str, Any]) -> None:
    rng, ratios = torch.Generator().manual_seed(case["seed"]), random.Random(case["seed"])
    plain = inputs(f"bnoise.{case['id']}", case["shape"])
    made = noise.pyramid(plain, case["iterations"], case["discount"], rng, ratios)
    assert error(made, NUMBERS[case["id"]]) < TOLERANCE
