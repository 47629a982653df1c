"""A flow model's training step and sampling levels equal those of two versions of sd-scripts.

Where both versions recorded the same settings they agree; the newer one records more (levels for every
sampling, `sigma_scaled` with every sampling, input perturbation), which the older one could not do.
"""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato.diffusion import noise, objectives, schedules, weighting
from sfumato.models.flux import packing
from sfumato.training.noising import FlowNoising, Noised
from sfumato.training.objective import ElementLoss
from tests.golden.derived import HERE, cases, error, inputs

TOLERANCE = 1e-6
VERSIONS = {"seed": 62, "head": 70}
NUMBERS = {version: load_file(HERE / f"b_flux_noise_{version}.safetensors") for version in VERSIONS}
CASES = [(version, case) for version in VERSIONS for case in cases(f"b_flux_noise_{version}")]


def of_kind(*starts: str) -> Any:
    chosen = [(version, case) for version, case in CASES if case["id"].startswith(starts)]
    ids = [f"{version}-{case['id']}" for version, case in chosen]
    return pytest.mark.parametrize(("version", "case"), chosen, ids=ids)


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
    counts = {version: len(cases(f"b_flux_noise_{version}")) for version in VERSIONS}
    kinds = {
        case["id"].rstrip("0123456789") for _, case in CASES if not case["id"].startswith("get_schedule")
    }
    tables = {name.split("/")[0] for name in NUMBERS["seed"]} - {case["id"] for _, case in CASES}
    print(f"flow noise cases: {counts}")
    assert counts == VERSIONS
    assert kinds == {"c", "full", "pack"}
    assert tables == {"sched", "weighting"}


@of_kind("c")
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


@of_kind("get_schedule")
def test_sampling_visits_the_recorded_levels(version: str, case: dict[str, Any]) -> None:
    _, _, steps, tokens, is_shifted = case["id"].split("_")
    mu = schedules.shift_exponent(int(tokens)) if is_shifted == "True" else None
    assert error(schedules.flow_sigmas(int(steps), mu), case["schedule"]) < TOLERANCE


@of_kind("pack")
def test_packing_equals_the_recorded_one(version: str, case: dict[str, Any]) -> None:
    recorded, latents = NUMBERS[version], inputs("bflux.pack", (2, 16, 4, 6))
    packed = packing.pack(latents)
    assert torch.equal(packed, recorded["pack/packed"])
    assert torch.equal(packing.unpack(packed, 4, 6), recorded["pack/unpacked"])
    assert torch.equal(packing.picture_ids(2, 4, 6, torch.device("cpu")), recorded["pack/img_ids"])


@pytest.mark.parametrize("shift", ["1.0", "1.15", "3.0", "3.1582"])
def test_table_of_levels_equals_the_recorded_one(shift: str) -> None:
    table = schedules.flow_table(float(shift))
    assert error(table, NUMBERS["seed"][f"sched/{shift}/sigmas"]) < TOLERANCE
    assert error(table * schedules.NUM_TIMESTEPS, NUMBERS["seed"][f"sched/{shift}/timesteps"]) < TOLERANCE


@pytest.mark.parametrize("scheme", ["sigma_sqrt", "logit_normal", "mode", "cosmap", "none"])
def test_weights_equal_the_recorded_ones(scheme: weighting.Scheme) -> None:
    weights = weighting.loss_weight(scheme, NUMBERS["seed"]["weighting/sigmas_in"])
    assert error(weights, NUMBERS["seed"][f"weighting/{scheme}"]) < TOLERANCE
