"""Seeds of many images, made of one seed of the whole run as the scripts of sd-scripts make them."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

from sfumato.sampling.request import random_seed

logger = logging.getLogger(__name__)


def drawn_seeds(rng: random.Random, first: int | None = None) -> Iterator[int]:
    """Yield a seed of 32 bits for each image, without end, as gen_img draws them.

    Args:
        rng: made of the seed of the run.
        first: of a run that makes one image, the seed of the run itself.
    """
    if first is not None:
        yield first
    while True:
        yield rng.randint(0, 0xFFFFFFFF)


def seeds_ahead(seed: int | None, number: int) -> Iterator[int]:
    """Yield a seed of 31 bits for each image, as sdxl_gen_img and gen_img_diffusers draw them.

    Args:
        seed: of the run; None draws seeds that nobody can foresee.
        number: of images that are known of; a single one has the seed of the run itself. Further ones, which
            come from enumerated variants or are typed in, have seeds that nobody can foresee.
    """
    if seed is not None and number == 1:
        yield seed
    elif seed is not None:
        rng = random.Random(seed)
        yield from [rng.randint(0, 0x7FFFFFFF) for _ in range(number)]
        logger.warning("--seed made seeds for %d images; those of others are random", number)
    while True:
        yield random_seed()
