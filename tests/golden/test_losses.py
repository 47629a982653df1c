"""Element-wise losses, thresholds and masks equal those of two versions of sd-scripts."""

import re
from typing import Any

import pytest
import torch

from sfumato.diffusion import losses, schedules
from sfumato.training.trainables.objective import ElementLoss
from tests.golden.derived import arrays, cases, error, exists, inputs

TOLERANCE = 1e-6
VERSIONS = [version for version in ("seed", "head") if exists(f"b_loss_{version}")]
NUMBERS = {version: arrays(f"b_loss_{version}") for version in VERSIONS}
CASES = [(version, case) for version in VERSIONS for case in cases(f"b_loss_{version}")]
LOSSES = [(version, case) for version, case in CASES if "loss_type" in case]
MASKED = [(version, case) for version, case in CASES if f"{case['id']}/none" in NUMBERS[version]]
MASK = re.compile(r"input:(?P<key>[\w.]+) \((?P<shape>[\d,]+)\)")
"""How a note says from which input a mask is made."""


def element_loss(case: dict[str, Any]) -> ElementLoss:
    if case["huber_schedule"] is None:
        return ElementLoss(case["loss_type"])
    return ElementLoss(case["loss_type"], case["huber_schedule"], case["huber_c"], case["huber_scale"] or 1.0)


def test_every_recorded_case_is_checked() -> None:
    print(f"loss cases: {len(CASES)}")
    assert all(case["note"] for _, case in MASKED)
    assert len(LOSSES) + len(MASKED) == len(CASES)


@pytest.mark.parametrize(("version", "case"), LOSSES, ids=[f"{v}-{c['id']}" for v, c in LOSSES])
def test_loss_equals_the_recorded_one(version: str, case: dict[str, Any]) -> None:
    prediction, target = (inputs(key, case["shape"]) for key in case["inputs"])
    timesteps = torch.tensor(case["timesteps"])
    levels = schedules.noise_to_signal(schedules.ddpm_kept()[timesteps])
    measure = element_loss(case)
    loss = measure(prediction, target, timesteps.float(), levels)
    if case["huber_per_sample"] is not None:
        assert error(measure.threshold(timesteps.float(), levels), case["huber_per_sample"]) < TOLERANCE
    assert error(loss, NUMBERS[version][f"{case['id']}/loss_elementwise"]) < TOLERANCE
    assert error(loss.mean((1, 2, 3)), case["per_sample"]) < TOLERANCE
    assert loss.mean().item() == pytest.approx(case["mean"], rel=TOLERANCE)


@pytest.mark.parametrize(("version", "case"), MASKED, ids=[version for version, _ in MASKED])
def test_masked_losses_equal_the_recorded_ones(version: str, case: dict[str, Any]) -> None:
    numbers, name = NUMBERS[version], case["id"]
    one = next(case for _, case in LOSSES)
    loss = losses.l2(*(inputs(key, one["shape"]) for key in one["inputs"]))
    image, *alphas = (
        inputs(found["key"], [int(side) for side in found["shape"].split(",")])
        for found in MASK.finditer(case["note"])
    )
    masks = [(image.clamp(-1, 1)[:, :1] + 1) / 2, *(alpha.sigmoid()[:, None] for alpha in alphas)]
    for kind, mask in zip(("cond", "alpha", "alpha_odd"), masks, strict=True):
        assert error(losses.masked(loss, mask), numbers[f"{name}/{kind}"]) < TOLERANCE
    assert error(loss, numbers[f"{name}/none"]) < TOLERANCE
