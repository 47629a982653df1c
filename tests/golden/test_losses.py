"""Element-wise losses, thresholds and masks equal those of two versions of sd-scripts."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato.diffusion import losses
from tests.golden.derived import HERE, cases, error, inputs

TOLERANCE = 1e-6
VERSIONS = {"seed": 14, "head": 27}
NUMBERS = {version: load_file(HERE / f"b_loss_{version}.safetensors") for version in VERSIONS}
CASES = [(version, case) for version in VERSIONS for case in cases(f"b_loss_{version}")]
LOSSES = [(version, case) for version, case in CASES if case["id"] != "masked"]
SHAPE = (4, 4, 5, 6)


def noise_to_signal(timesteps: Tensor) -> Tensor:
    """Return sqrt((1 - alpha_bar) / alpha_bar) of Stable Diffusion's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)[timesteps]
    return torch.sqrt((1 - kept) / kept)


def threshold(case: dict[str, Any]) -> Tensor:
    timesteps, c, scale = torch.tensor(case["timesteps"]), case["huber_c"], case["huber_scale"] or 1.0
    if case["huber_schedule"] == "snr":
        return losses.snr_threshold(noise_to_signal(timesteps), c)
    if case["huber_schedule"] == "exponential":
        return losses.exponential_threshold(timesteps, c, scale)
    return losses.constant_threshold(timesteps, c, scale)


def test_every_recorded_case_is_checked() -> None:
    counts = {version: len(cases(f"b_loss_{version}")) for version in VERSIONS}
    print(f"loss cases: {counts}")
    assert counts == VERSIONS
    assert len(LOSSES) == len(CASES) - 2


@pytest.mark.parametrize(("version", "case"), LOSSES, ids=[f"{v}-{c['id']}" for v, c in LOSSES])
def test_loss_equals_the_recorded_one(version: str, case: dict[str, Any]) -> None:
    prediction, target = inputs("bloss.pred", SHAPE), inputs("bloss.target", SHAPE)
    if case["loss_type"] in ("l1", "l2"):
        loss = {"l1": losses.l1, "l2": losses.l2}[case["loss_type"]](prediction, target)
    else:
        limit = threshold(case)
        assert error(limit, case["huber_per_sample"]) < TOLERANCE
        loss = {"huber": losses.huber, "smooth_l1": losses.smooth_l1}[case["loss_type"]](
            prediction, target, limit
        )
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
