"""A flow model's training step and sampling levels equal those of two versions of sd-scripts.

Where both versions recorded the same settings they agree; the newer one records more (levels for every
sampling, `sigma_scaled` with every sampling, input perturbation), which the older one could not do.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.diffusion import noise, objectives, schedules, weighting
from sfumato.models.families.flux import packing
from sfumato.training.trainables.noising import FlowNoising, Noised
from sfumato.training.trainables.objective import ElementLoss
from tests.golden.derived import arrays, cases, error, exists, inputs

TOLERANCE = 1e-6
VERSIONS = [version for version in ("seed", "head") if exists(f"b_flux_noise_{version}")]
NUMBERS = {version: arrays(f"b_flux_noise_{version}") for version in VERSIONS}
CASES = [(version, case) for version in VERSIONS for case in cases(f"b_flux_noise_{version}")]


def kind_of(version: str, case: dict[str, Any]) -> str:
    """Return what was recorded in a case: a list of levels, packing, or a step, perhaps with its noise."""
    if "schedule" in case or f"{case['id']}/packed" in NUMBERS[version]:
        return "schedule" if "schedule" in case else "pack"
    return "full" if f"{case['id']}/noise" in NUMBERS[version] else "step"


def of_kind(kind: str) -> Any:
    chosen = [(version, case) for version, case in CASES if kind_of(version, case) == kind]
    ids = [f"{version}-{case['id']}" for version, case in chosen]
    return pytest.mark.parametrize(("version", "case"), chosen, ids=ids)


def of_seed(stem: str) -> list[str]:
    """Return what follows a stem in the names of the older version's tables."""
    names = (name.split("/") for name in NUMBERS.get("seed", {}))
    return sorted({name[1] for name in names if name[0] == stem})


def noising(case: dict[str, Any]) -> FlowNoising:
    parameters = {name: case[name] for name in ("logit_mean", "logit_std", "mode_scale") if name in case}
    return FlowNoising(
        sampling=case["timestep_sampling"],
        interpretation=case.get("model_prediction_type", "raw"),
        scheme=case["weighting_scheme"],
        shift=case["discrete_flow_shift"],
        sigmoid_scale=case["sigmoid_scale"],
        perturbation=case.get("ip_noise_gamma", 0.0),
        is_perturbation_random=case.get("ip_noise_gamma_random_strength", False),
        **parameters,
    )


def latents_of(case: dict[str, Any]) -> Tensor:
    return inputs(f"bflux.{case['id']}.latents", case["shape"])


def test_every_recorded_case_is_checked() -> None:
    tables = {name.split("/")[0] for numbers in NUMBERS.values() for name in numbers}
    print(f"flow noise cases: {len(CASES)}")
    assert tables - {case["id"] for _, case in CASES} <= {"sched", "weighting"}


@of_kind("step")
def test_step_equals_the_recorded_one(version: str, case: dict[str, Any]) -> None:
    recorded, name = NUMBERS[version], case["id"]
    maker, latents = noising(case), latents_of(case)
    plain = inputs(f"bflux.{name}.noise", case["shape"])
    rng = torch.Generator().manual_seed(case["seed"])

    sigmas = maker.levels(latents.shape, rng)

    assert error(sigmas * schedules.NUM_TIMESTEPS, case["timesteps"]) < TOLERANCE
    if case["sigmas"] is not None:
        assert error(sigmas, case["sigmas"]) < TOLERANCE
    if "next_rand_after" in case:
        assert torch.rand(1, generator=rng).item() == case["next_rand_after"]
    shown = plain
    if maker.perturbation:
        shown = noise.perturb(plain, maker.perturbation, rng, maker.is_perturbation_random)
    noisy = objectives.flow_noisy(latents, shown, sigmas)
    assert error(noisy, recorded[f"{name}/noisy"]) < TOLERANCE
    if "loss" not in case:
        return
    noised = Noised(noisy, objectives.flow_target(latents, plain), sigmas, sigmas * schedules.NUM_TIMESTEPS)
    reading = maker.read(inputs(f"bflux.{name}.model_pred", case["shape"]), noised)
    assert error(reading, recorded[f"{name}/pred_after_type"]) < TOLERANCE
    weights = maker.weigh(noised)
    assert (weights is None) == (case["weighting"] is None)
    losses = ElementLoss()(reading, noised.target, noised.timesteps, sigmas).mean((1, 2, 3))
    if weights is not None:
        assert error(weights, case["weighting"]) < TOLERANCE
        losses = losses * weights
    assert error(losses, case["per_sample_loss"]) < TOLERANCE
    assert losses.mean().item() == pytest.approx(case["loss"], rel=TOLERANCE)


@of_kind("full")
def test_noise_is_drawn_before_timesteps_from_one_generator(version: str, case: dict[str, Any]) -> None:
    recorded, name = NUMBERS[version], case["id"]
    rng = torch.Generator().manual_seed(case["seed"])

    noised = noising(case)(latents_of(case), rng)

    assert error(noised.timesteps, case["timesteps"]) < TOLERANCE
    assert error(noised.noisy, recorded[f"{name}/noisy"]) < TOLERANCE
    assert error(noised.target, recorded[f"{name}/target"]) < TOLERANCE
    assert error(noised.target + latents_of(case), recorded[f"{name}/noise"]) < TOLERANCE


@of_kind("schedule")
def test_sampling_visits_the_recorded_levels(version: str, case: dict[str, Any]) -> None:
    steps, tokens, is_shifted = case["id"].split("_")[-3:]
    mu = schedules.shift_exponent(int(tokens)) if is_shifted == "True" else None
    assert error(schedules.flow_sigmas(int(steps), mu), case["schedule"]) < TOLERANCE


@of_kind("pack")
def test_packing_equals_the_recorded_one(version: str, case: dict[str, Any]) -> None:
    name, recorded = case["id"], NUMBERS[version]
    shape = recorded[f"{name}/unpacked"].shape
    packed = packing.pack(inputs(f"bflux.{name}", shape))
    assert torch.equal(packed, recorded[f"{name}/packed"])
    assert torch.equal(packing.unpack(packed, *shape[2:]), recorded[f"{name}/unpacked"])
    places = packing.image_ids(len(packed), *shape[2:], torch.device("cpu"))
    assert torch.equal(places, recorded[f"{name}/img_ids"])


@pytest.mark.parametrize("shift", of_seed("sched"))
def test_table_of_levels_equals_the_recorded_one(shift: str) -> None:
    table = schedules.flow_table(float(shift))
    assert error(table, NUMBERS["seed"][f"sched/{shift}/sigmas"]) < TOLERANCE
    assert error(table * schedules.NUM_TIMESTEPS, NUMBERS["seed"][f"sched/{shift}/timesteps"]) < TOLERANCE


@pytest.mark.parametrize("scheme", [name for name in of_seed("weighting") if name != "sigmas_in"])
def test_weights_equal_the_recorded_ones(scheme: weighting.Scheme) -> None:
    weights = weighting.loss_weight(scheme, NUMBERS["seed"]["weighting/sigmas_in"])
    assert error(weights, NUMBERS["seed"][f"weighting/{scheme}"]) < TOLERANCE
