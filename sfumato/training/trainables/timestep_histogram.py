"""How often a run would train each noise level, and how it would weigh it: `--show_timesteps`.

Levels are drawn with what draws them in training, so that every option is in it that is in the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato import seeds
from sfumato.config.checks import sides
from sfumato.config.run.run import Run
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.diffusion.schedules import NUM_TIMESTEPS
from sfumato.models.interface.family import Family
from sfumato.training.trainables.denoising import objective_of
from sfumato.training.trainables.noising import Noising

_NUM_DRAWN = 100_000
_ROW_TIMESTEPS = 50
"""Timesteps in one row of a text."""
_BAR = 40
"""Characters of the longest bar."""


@dataclass(frozen=True)
class TimestepHistogram:
    """What was drawn.

    Attributes:
        shares: (1000,) of the draws that fell on each timestep; 0 is almost clean. They add up to 1.
        weights: (1000,) the mean factor on the loss at each timestep; NaN where nothing was drawn.
        size: (width, height) of the images in pixels.
    """

    shares: Tensor
    weights: Tensor
    size: tuple[int, int]

    def rows(self, width: int) -> list[tuple[int, float, float]]:
        """Return (first timestep, share, mean weight) of each `width` timesteps; a weight may be NaN."""
        parts, factors = self.shares.split(width), self.weights.nan_to_num().split(width)
        means = [(part * own).sum() / part.sum() for part, own in zip(parts, factors, strict=True)]
        return [
            (row * width, part.sum().item(), mean.item())
            for row, (part, mean) in enumerate(zip(parts, means, strict=True))
        ]

    def as_text(self) -> str:
        """Return a bar for each 50 timesteps."""
        rows = self.rows(_ROW_TIMESTEPS)
        most = max(share for _, share, _ in rows)
        lines = [f"{_NUM_DRAWN:,} timesteps drawn as for images of {self.size[0]}x{self.size[1]}; 0 is clean"]
        lines += [_line(first, share, weight, most) for first, share, weight in rows]
        return "\n".join(lines)


def _line(first: int, share: float, weight: float, most: float) -> str:
    bar = "#" * round(_BAR * share / most)
    words = f"weight {weight:.4g}" if share else ""
    return f"{first:4}-{first + _ROW_TIMESTEPS - 1:<4} {bar:{_BAR}} {share:7.2%}  {words}".rstrip()


def timestep_histogram(run: Run, family: Family) -> TimestepHistogram:
    """Draw timesteps as the run's training would.

    Raises:
        UserError: options contradict each other or the kind of model.
    """
    space = family.latents
    noising = objective_of(run, family).noising
    width, height = sides("show_timesteps_resolution", run[NoiseConfig].show_timesteps_resolution)
    shape = (_NUM_DRAWN, space.channels, height // space.downscale, width // space.downscale)
    return drawn_by(noising, torch.Size(shape), (width, height))


def drawn_by(noising: Noising, shape: torch.Size, size: tuple[int, int]) -> TimestepHistogram:
    """Draw timesteps for latents of that shape, (B, C, H/8, W/8), of images of that size in pixels."""
    drawn = noising.draw(shape, torch.Generator().manual_seed(seeds.derive("timesteps")))
    weights = noising.weigh(drawn)
    places = drawn.timesteps.long().clamp(0, NUM_TIMESTEPS - 1)
    counts = torch.bincount(places, minlength=NUM_TIMESTEPS)
    factors = torch.ones(shape[0]) if weights is None else weights.float()
    sums = torch.zeros(NUM_TIMESTEPS).index_add_(0, places, factors)
    return TimestepHistogram(counts / shape[0], sums / counts, size)
