"""Seeds of many images: those that a prompt line gives, or those that one seed of the whole run makes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from sfumato.sampling.request import random_seed


def drawn_seeds(seed: int | None, *, is_single: bool = False) -> Iterator[int]:
    """Yield a seed of 32 bits for each image, without end, as gen_img draws them.

    Args:
        seed: of the run; None draws seeds that nobody can foresee.
        is_single: the run makes one image, which has the seed of the run itself.
    """
    if seed is None:
        while True:
            yield random_seed()
    if is_single:
        yield seed
    rng = random.Random(seed)
    while True:
        yield rng.randint(0, 0xFFFFFFFF)


def seeds_of_line(given: Sequence[int], number: int, others: Iterator[int]) -> list[int]:
    """Return the seeds of a line's images.

    Args:
        given: what the line says; the last one holds for all that follow.
        number: of images.
        others: where seeds come from if the line gives none.
    """
    if not given:
        return list(islice(others, number))
    return [given[min(place, len(given) - 1)] for place in range(number)]
