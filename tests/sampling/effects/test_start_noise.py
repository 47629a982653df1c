"""Changed start noise: by chance, from each image's seed, whatever its company."""

from __future__ import annotations

import pytest
import torch

from sfumato.errors import UserError
from sfumato.sampling.effects.start_noise import StartNoise, varied

NOISE = torch.randn(200, 4, 16, 16, generator=torch.Generator().manual_seed(0))
SEEDS = range(200)


def test_without_a_probability_noise_stays_as_it_is() -> None:
    assert torch.equal(varied(NOISE, SEEDS, StartNoise(offset=(1.0, 2.0))), NOISE)


def test_an_offset_is_one_number_for_a_channel() -> None:
    change = varied(NOISE, SEEDS, StartNoise(offset_probability=1.0, offset=(0.5, 0.5))) - NOISE
    assert float(change.std(dim=(2, 3)).max()) < 1e-6
    assert float(change[..., 0, 0].std()) == pytest.approx(0.5, rel=0.1)


def test_an_image_is_changed_as_often_as_asked_and_alone_as_in_company() -> None:
    settings = StartNoise(offset_probability=0.3, offset=(0.2, 0.4))
    found = varied(NOISE, SEEDS, settings)
    are_changed = (found != NOISE).flatten(1).any(dim=1)
    assert 0.2 < float(are_changed.float().mean()) < 0.4
    assert torch.equal(varied(NOISE[7:8], [7], settings), found[7:8])


def test_pyramid_noise_is_coarser_and_as_strong() -> None:
    found = varied(NOISE, SEEDS, StartNoise(pyramid_probability=1.0, pyramid_discount=(0.5, 0.9)))
    steps = (found[..., 1:] - found[..., :-1]).std() / found.std()
    assert float(found.std(dim=(1, 2, 3)).mean()) == pytest.approx(1, abs=1e-3)
    assert float(steps) < 1.3 < float((NOISE[..., 1:] - NOISE[..., :-1]).std())


def test_a_probability_beyond_one_is_refused() -> None:
    with pytest.raises(UserError, match="offset_probability is 1"):
        StartNoise(offset_probability=1.5)
