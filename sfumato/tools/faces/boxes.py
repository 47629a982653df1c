"""Boxes around what was found, (N, 4) float64: left, top, right, bottom in pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def distinct(boxes: Numbers, scores: Numbers, most: float, *, of_smaller: bool = False) -> NDArray[np.intp]:
    """Return the indices of boxes that no better one overlaps by more than `most`, the best first.

    Args:
        most: share that two boxes have in common: of both together, or of the smaller one with `of_smaller`.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    remaining, kept = np.argsort(-scores, kind="stable"), []
    while remaining.size:
        best, others = remaining[0], remaining[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[others, :2])
        high = np.minimum(boxes[best, 2:], boxes[others, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        smaller = np.minimum(areas[best], areas[others])
        whole = smaller if of_smaller else areas[best] + areas[others] - shared
        remaining = others[shared <= most * whole]
    return np.array(kept, dtype=np.intp)


def moved(boxes: Numbers, offsets: Numbers) -> Numbers:
    """Return boxes whose sides are moved by offsets (N, 4) in units of their sizes."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    return boxes + offsets * np.hstack([sizes, sizes])


def squared(boxes: Numbers) -> Numbers:
    """Return squares about the same centres, with the longer sides, in whole pixels."""
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
    corners = (boxes[:, :2] + boxes[:, 2:] - sides) / 2
    return np.trunc(np.hstack([corners, corners + sides]))
