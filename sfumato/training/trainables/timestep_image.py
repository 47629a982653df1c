"""An image of how often timesteps are drawn, above one of how they are weighed."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sfumato.checkpoints.atomic import atomic_file
from sfumato.training.trainables.timestep_histogram import TimestepHistogram

NAME = "timesteps.png"

logger = logging.getLogger(__name__)

_BAR_TIMESTEPS, _BAR_PX = 10, 8
_PLOT_PX, _MARGIN_PX, _LINE_PX = 220, 24, 18
_PAPER, _INK, _GREY, _BLUE = (250, 249, 246), (30, 30, 30), (110, 110, 110), (58, 104, 160)


def write(histogram: TimestepHistogram, folder: Path) -> None:
    """Write the image into a folder, which is made if it is missing.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / NAME
    with atomic_file(path) as file:
        draw(histogram).save(file, "PNG")
    logger.info("wrote %s", path)


def draw(histogram: TimestepHistogram) -> Image.Image:
    """Draw both, a bar for each 10 timesteps."""
    rows = histogram.rows(_BAR_TIMESTEPS)
    plot_px = _PLOT_PX + 2 * _LINE_PX + _MARGIN_PX
    sheet = Image.new("RGB", (len(rows) * _BAR_PX + 3 * _MARGIN_PX, 2 * plot_px + _MARGIN_PX), _PAPER)
    width, height = histogram.size
    plots = {
        f"share of the timesteps that are drawn, images of {width}x{height}": [share for _, share, _ in rows],
        "mean factor on the loss": [weight for _, _, weight in rows],
    }
    for number, (title, values) in enumerate(plots.items()):
        _plot(ImageDraw.Draw(sheet), title, values, _MARGIN_PX + number * plot_px)
    return sheet


def _plot(pen: ImageDraw.ImageDraw, title: str, values: list[float], top: int) -> None:
    """Draw one bar for each value, NaN being none, below a title with the highest value."""
    most = max((value for value in values if not math.isnan(value)), default=0.0)
    floor, font = top + _LINE_PX + _PLOT_PX, ImageFont.load_default(13)
    pen.text((_MARGIN_PX, top), f"{title} (highest {most:.4g})", _INK, font)
    for place, value in enumerate(values):
        if value > 0:
            left, tall = _MARGIN_PX + place * _BAR_PX, round(_PLOT_PX * value / most)
            pen.rectangle((left, floor - tall, left + _BAR_PX - 2, floor), _BLUE)
    pen.line((_MARGIN_PX, floor, _MARGIN_PX + len(values) * _BAR_PX, floor), _GREY)
    for mark in range(0, len(values) + 1, 20):
        pen.text((_MARGIN_PX + mark * _BAR_PX, floor + 3), str(mark * _BAR_TIMESTEPS), _GREY, font)
