"""The nine photographs of the demo: eight that the toy base has memorised, one that it has never seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

SIZE_PX = 64
FOLDER = Path(__file__).parent / "pictures"


@dataclass(frozen=True)
class Photograph:
    """One square crop of a photograph that comes with scikit-image.

    Attributes:
        name: file name of the crop, without suffix.
        prompt: what the image is asked for with.
        captions: other words for it that the base was trained on.
        original: file of `skimage/data`.
        box: the crop in pixels of the original: left, top, side.
    """

    name: str
    prompt: str
    captions: tuple[str, ...]
    original: str
    box: tuple[int, int, int]

    @property
    def path(self) -> Path:
        """The crop that is shipped with the package, SIZE_PX square."""
        return FOLDER / f"{self.name}.png"


KNOWN = (
    Photograph(
        "astronaut",
        "a photo of an astronaut",
        ("an astronaut in an orange suit", "an astronaut before a flag"),
        "astronaut.png",
        (80, 0, 320),
    ),
    Photograph(
        "coffee",
        "a photo of a cup of coffee",
        ("a red cup on a wooden table", "coffee in a cup with a saucer"),
        "coffee.png",
        (100, 0, 400),
    ),
    Photograph(
        "eye",
        "a photo of the back of an eye",
        ("the retina of an eye", "a red disc with blood vessels"),
        "retina.jpg",
        (0, 0, 1411),
    ),
    Photograph(
        "cameraman",
        "a photo of a man with a camera",
        ("a cameraman in a dark coat", "a grey picture of a man on a lawn"),
        "camera.png",
        (60, 10, 400),
    ),
    Photograph(
        "bricks",
        "a photo of a brick wall",
        ("a wall of grey bricks", "bricks in a row"),
        "brick.png",
        (100, 100, 200),
    ),
    Photograph(
        "rocket",
        "a photo of a rocket",
        ("a rocket before the launch", "a rocket in the evening"),
        "rocket.jpg",
        (107, 0, 427),
    ),
    Photograph(
        "galaxies",
        "a photo of galaxies",
        ("galaxies in a black sky", "bright spots in deep space"),
        "hubble_deep_field.jpg",
        (560, 560, 220),
    ),
    Photograph(
        "pebbles",
        "a photo of pebbles",
        ("grey pebbles on the ground", "gravel seen from above"),
        "gravel.png",
        (180, 180, 110),
    ),
)

SUBJECT = Photograph(
    "cat", "a photo of a cat", ("the face of a cat", "a cat with yellow eyes"), "chelsea.png", (75, 0, 300)
)


def psnr_db(one: Image.Image, other: Image.Image) -> float:
    """Return how alike two RGB images are: peak signal to noise ratio over all pixels and channels."""
    squares = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).sum2
    error = sum(squares) / (3 * one.width * one.height)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
