"""Slight changes of colour, so that a model does not learn the light of a few photographs."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

_PROBABILITY = 0.33
_MOST_HUE_DEGREES = 16.0
_GAMMA_RANGE = (0.95, 1.05)


@dataclass(frozen=True)
class Tint:
    """One change of colour.

    Attributes:
        hue_degrees: by how much every hue is turned.
        gamma: exponent of every channel, which runs from 0 to 1.
    """

    hue_degrees: float = 0.0
    gamma: float = 1.0

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the changed RGB image."""
        if self.gamma != 1.0:
            image = image.point([round(255 * (level / 255) ** self.gamma) for level in range(256)] * 3)
        turn = round(self.hue_degrees * 256 / 360)
        if turn:
            hue, saturation, value = image.convert("HSV").split()
            turned = hue.point([(level + turn) % 256 for level in range(256)])
            image = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
        return image


def draw(rng: random.Random) -> Tint | None:
    """Draw what to change: nothing for two thirds of all images, hue or gamma for a sixth each."""
    if rng.random() >= _PROBABILITY:
        return None
    if rng.random() < 0.5:
        return Tint(hue_degrees=rng.uniform(-_MOST_HUE_DEGREES, _MOST_HUE_DEGREES))
    return Tint(gamma=rng.uniform(*_GAMMA_RANGE))
