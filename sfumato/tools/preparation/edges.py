"""The edges in an image (Canny 1986), to the pixel those of OpenCV, whose integer arithmetic this follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config.tools.pictures.edges import EdgesConfig
from sfumato.data.images.images import BrokenImageError, decode
from sfumato.errors import UserError
from sfumato.tools.outputs import require_writable

_RED, _GREEN, _BLUE, _BITS = 9798, 19235, 3735, 15
"""Shares of grey (ITU-R BT.601), and the bits behind their point."""
_TAN_22_5 = round(np.tan(np.pi / 8) * 2**15)

Map = NDArray[np.int32]


def draw_edges(options: EdgesConfig) -> None:
    """Write the edges of one image.

    Raises:
        UserError: a file cannot be read or written.
    """
    source, target = Path(options.input or ""), Path(options.output or "")
    require_writable("--output", target)
    try:
        pixels = np.asarray(decode(source))
    except BrokenImageError as error:
        raise UserError(f"--input {source} cannot be read: {error}; give another image") from error
    drawn = Image.fromarray(edges(grey(pixels), options.thres1, options.thres2))
    kind = Image.registered_extensions().get(target.suffix.lower())
    if kind not in Image.SAVE:
        raise UserError(f"--output is {target}; end it in .png")
    with atomic_file(target) as file:
        drawn.save(file, kind)


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W) grey of (H, W, 3) RGB."""
    shares = np.array([_RED, _GREEN, _BLUE], np.int64)
    return ((pixels @ shares + (1 << _BITS - 1)) >> _BITS).astype(np.uint8)


def edges(levels: NDArray[np.uint8], low: int, high: int) -> NDArray[np.uint8]:
    """Return (H, W), 255 on the edges of a grey image and 0 elsewhere.

    Args:
        low, high: contrasts of a Sobel filter; between them a pixel is an edge only beside another.
    """
    low, high = min(low, high), max(low, high)
    across, down = _slopes(levels.astype(np.int32))
    contrast = np.abs(across) + np.abs(down)
    is_ridge = _is_ridge(contrast, across, down) & (contrast > low)
    return _grown(is_ridge & (contrast > high), is_ridge).astype(np.uint8) * 255


def _slopes(levels: Map) -> tuple[Map, Map]:
    """Return Sobel's slopes across and down; the border repeats."""
    padded = np.pad(levels, 1, mode="edge")
    smooth = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    across = smooth[:, 2:] - smooth[:, :-2]
    smooth = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return across, smooth[2:] - smooth[:-2]


def _is_ridge(contrast: Map, across: Map, down: Map) -> NDArray[np.bool_]:
    """Return where the contrast is largest along the slope, which has one of four directions."""
    height, width = contrast.shape
    around = np.pad(contrast, 1)

    def beside(rows: int, columns: int) -> Map:
        return around[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    flat = np.abs(across).astype(np.int64) * _TAN_22_5
    steep = flat + (np.abs(across).astype(np.int64) << 16)
    rise = np.abs(down).astype(np.int64) << 15
    falls = (across ^ down) < 0
    level = (contrast > beside(0, -1)) & (contrast >= beside(0, 1))
    upright = (contrast > beside(-1, 0)) & (contrast >= beside(1, 0))
    rising = (contrast > beside(-1, -1)) & (contrast > beside(1, 1))
    falling = (contrast > beside(-1, 1)) & (contrast > beside(1, -1))
    return np.where(rise < flat, level, np.where(rise > steep, upright, np.where(falls, falling, rising)))


def _grown(strong: NDArray[np.bool_], possible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return all possible pixels that a chain of neighbours joins to a strong one."""
    width = strong.shape[1] + 2
    offsets = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    found, left = np.pad(strong, 1).ravel(), np.pad(possible & ~strong, 1).ravel()
    front = np.flatnonzero(found)
    while front.size:
        beside = np.unique(front[:, None] + offsets)
        front = beside[left[beside]]
        left[front] = False
        found[front] = True
    return found.reshape(-1, width)[1:-1, 1:-1]
