from __future__ import annotations

import colorsys
import random

import numpy as np
import pytest
from PIL import Image

from sfumato.data.images import colour
from sfumato.data.images.colour import Tint
from tests.data.folders import pixels

NOISE = Image.fromarray(pixels("colour", 40, 30))


def hue(image: Image.Image) -> float:
    red, green, blue = (channel / 255 for channel in np.asarray(image)[0, 0])
    return colorsys.rgb_to_hsv(red, green, blue)[0] * 360


def test_a_third_of_all_images_vary_half_in_hue_and_half_in_gamma() -> None:
    rng = random.Random(0)
    tints = [colour.draw(rng) for _ in range(6000)]
    hues = [tint.hue_degrees for tint in tints if tint and tint.gamma == 1]
    gammas = [tint.gamma for tint in tints if tint and tint.hue_degrees == 0]
    assert len(hues) + len(gammas) == sum(tint is not None for tint in tints)
    assert len(hues) / 6000 == pytest.approx(0.165, abs=0.015)
    assert len(gammas) / 6000 == pytest.approx(0.165, abs=0.015)
    assert (min(hues), max(hues)) == (pytest.approx(-16, abs=0.3), pytest.approx(16, abs=0.3))
    assert (min(gammas), max(gammas)) == (pytest.approx(0.95, abs=0.002), pytest.approx(1.05, abs=0.002))


@pytest.mark.parametrize("degrees", [-16, -5, 7, 16])
def test_hues_turn_by_that_angle_and_brightness_stays(degrees: float) -> None:
    for base in ((200, 40, 40), (30, 190, 90), (60, 60, 210)):
        before = Image.new("RGB", (2, 2), base)
        after = Tint(hue_degrees=degrees)(before)
        assert (hue(after) - hue(before) - degrees + 180) % 360 - 180 == pytest.approx(0, abs=2.5)
        assert np.asarray(after).max() == max(base)


def test_grey_has_no_hue_to_turn() -> None:
    grey = Image.new("RGB", (2, 2), (90, 90, 90))
    assert Tint(hue_degrees=16)(grey).tobytes() == grey.tobytes()


def test_gamma_raises_every_channel_to_its_power() -> None:
    expected = 255 * (np.asarray(NOISE) / 255) ** 1.05
    assert np.abs(np.asarray(Tint(gamma=1.05)(NOISE)) - expected).max() <= 0.5 + 1e-9


def test_no_change_leaves_an_image_as_it_is() -> None:
    assert Tint()(NOISE).tobytes() == NOISE.tobytes()
