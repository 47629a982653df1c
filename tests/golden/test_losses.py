"""Element-wise losses, thresholds and masks equal those of two versions of sd-scripts."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sfumato.diffusion import losses, schedules
from sfumato.training.objective import ElementLoss
from tests.golden.derived import HERE, cases, error, inputs

TOLERANCE = 1e-6
VERSIONS = {"seed": 14, "head": 27}
NUMBERS = {version: load_file(HERE / f"b_loss_{version}.safetensors") for version in VERSIONS}
CASES = [(version, case) for version in VERSIONS for case in cases(f"b_loss_{version}")]
LOSSES = [(version, case) for version, case in CASES if case["id"] != "masked"]
SHAPE = (4, 4, 5, 6)


def element_loss(case: dict[str, Any]) -> ElementLoss:
    if case["huber_schedule"] is None:
        return ElementLoss(case["loss_type"])
    return ElementLoss(case["loss_type"], case["huber_schedule"], case["huber_c"], case["huber_scale"] or 1.0)


def test_every_recorded_case_is_checked() -> None:
    counts = {version: len(cases(f"b_loss_{version}")) for version in VERSIONS}
    print(f"loss cases: {counts}")
    assert counts == VERSIONS
    assert len(LOSSES) == len(CASES) - 2


@pytest.mark.parametrize(("version", "case"), LOSSES, ids=[f"{v}-{c['id']}" for v, c in LOSSES])
def test_loss_equals_the_recorded_one(version: str, case: dict[str, Any]) -> None:
    prediction, target = inputs("bloss.pred", SHAPE), inputs("bloss.target", SHAPE)
    timesteps = torch.tensor(case["timesteps"])
    levels = schedules.noise_to_signal(schedules.ddpm_kept()[timesteps])
    measure = element_loss(case)
    loss = measure(prediction, target, timesteps.float(), levels)
    if case["huber_per_sample"] is not None:
        assert error(measure.threshold(timesteps.float(), levels), case["huber_per_sample"]) < TOLERANCE
    assert error(loss, NUMBERS[version][f"{case['id']}/loss_elementwise"]) < TOLERANCE
    assert error(loss.mean((1, 2, 3)), case["per_sample"]) < TOLERANCE
    assert loss.mean().item() == pytest.approx(case["mean"], rel=TOLERANCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_masked_losses_equal_the_recorded_ones(version: str) -> None:
    loss = losses.l2(inputs("bloss.pred", SHAPE), inputs("bloss.target", SHAPE))
    masks = {
        "cond": (inputs("bloss.cond", (4, 3, 40, 48)).clamp(-1, 1)[:, :1] + 1) / 2,
        "alpha": inputs("bloss.alpha", (4, 40, 48)).sigmoid()[:, None],
        "alpha_odd": inputs("bloss.alpha2", (4, 41, 50)).sigmoid()[:, None],
    }
    for name, mask in masks.items():
        assert error(losses.masked(loss, mask), NUMBERS[version][f"masked/{name}"]) < TOLERANCE
    assert error(loss, NUMBERS[version]["masked/none"]) < TOLERANCE
