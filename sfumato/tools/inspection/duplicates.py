"""Images that look alike: the difference hash of 64 bits, and all pairs that differ in a few of them.

An image is shrunk to 9 x 8 grey pixels; each bit says whether a pixel is darker than its right neighbour
(Krawetz 2013, "Kind of like that"). Other sizes, formats and qualities of an image hardly change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
from PIL import Image

NUM_BITS = 64
FEW_BITS = 4
"""Bits in which two images that look alike may differ."""


def difference_hash(image: Image.Image) -> int:
    """Return the 64 bits of an image."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, :-1] < grey[:, 1:]).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def groups(hashes: Sequence[int], most: int = FEW_BITS) -> list[list[int]]:
    """Return the indices of hashes that differ in at most `most` bits, in groups of two and more, sorted.

    A group holds whatever is linked by such pairs. Of `most` + 1 bands, two alike hashes agree in one
    at least, so that only hashes that share a band are compared: nearly linear in their number.
    """
    members: dict[int, list[int]] = {}
    for index, value in enumerate(hashes):
        members.setdefault(value, []).append(index)
    leader = {value: value for value in members}
    for one, other in _alike(list(members), most):
        leader[_first(leader, other)] = _first(leader, one)
    joined: dict[int, list[int]] = {}
    for value, indices in members.items():
        joined.setdefault(_first(leader, value), []).extend(indices)
    return sorted(sorted(group) for group in joined.values() if len(group) > 1)


def _alike(values: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    edges = [NUM_BITS * band // (most + 1) for band in range(most + 2)]
    for low, high in pairwise(edges):
        bands: dict[int, list[int]] = {}
        for value in values:
            bands.setdefault(value >> low & (1 << high - low) - 1, []).append(value)
        for sharing in bands.values():
            for one, other in combinations(sharing, 2):
                if (one ^ other).bit_count() <= most:
                    yield one, other


def _first(leader: Mapping[int, int], value: int) -> int:
    while leader[value] != value:
        value = leader[value]
    return value
