"""What `--show_timesteps` shows is what training draws and how it weighs."""

import math
from typing import Any

import pytest
import torch

from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.diffusion import schedules, weighting
from sfumato.models.interface.family import Prediction
from sfumato.training.trainables.objective import objective_for
from sfumato.training.trainables.timestep_histogram import TimestepHistogram, drawn_by
from tests.training.trainables.test_objective import run_of

FLOW, DDPM = Prediction.FLOW, Prediction.EPSILON


def histogram(kind: Prediction, *sections: Any, side: int = 128) -> TimestepHistogram:
    noising = objective_for(run_of(*sections), kind).noising
    return drawn_by(noising, torch.Size((100_000, 4, side, side)), (8 * side, 8 * side))


def test_shares_add_up_and_stay_in_the_range_of_the_run() -> None:
    found = histogram(DDPM, NoiseConfig(min_timestep=200, max_timestep=500))
    assert found.shares.sum().item() == pytest.approx(1)
    assert torch.nonzero(found.shares)[[0, -1]].flatten().tolist() == [200, 499]
    rows = found.rows(50)
    assert [first for first, share, _ in rows if share] == [200, 250, 300, 350, 400, 450]
    assert all(share == pytest.approx(1 / 6, rel=0.03) for _, share, _ in rows if share)
    assert math.isnan(rows[0][2])
    assert " 500-549" in found.as_text()


def test_levels_follow_the_size_of_the_image_where_they_depend_on_it() -> None:
    flow = FlowConfig(timestep_sampling="flux_shift")
    small, large = (histogram(FLOW, flow, side=side).rows(500)[1][1] for side in (32, 128))
    # The median of a shifted sigmoid is above half the noise by the shift: 1.65 and 3.16 times as likely.
    assert small == pytest.approx(0.69, abs=0.02)
    assert large == pytest.approx(0.875, abs=0.02)


def test_weights_are_those_of_the_loss() -> None:
    found = histogram(DDPM, LossConfig(min_snr_gamma=5.0))
    snr = schedules.signal_to_noise(schedules.ddpm_kept())
    assert torch.allclose(found.weights, weighting.min_snr(snr, 5.0), rtol=1e-4)
    found = histogram(FLOW, FlowConfig(weighting_scheme="cosmap"))
    assert found.weights[500].item() == pytest.approx(4 / math.pi, rel=1e-3)
    assert torch.equal(histogram(FLOW).weights.nan_to_num(1.0), torch.ones(1000))
