"""The order in which a run goes through its lines, and the seeds that go with them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

from sfumato.config.run.image_scripts.prompts import PromptSourceConfig
from sfumato.sampling.prompts.seeds import drawn_seeds, seeds_ahead
from sfumato.sampling.prompts.variants import drawn_for_seed
from sfumato.sampling.request import random_seed
from sfumato.sampling.sd_scripts.asked_images import AskedImage, Choose, ImageList, InOrder
from sfumato.sampling.sd_scripts.prompt_lines import Place, PromptLines


@dataclass(frozen=True)
class Draws:
    """What a script draws from: the newest one, or an older one.

    Attributes:
        rng: modules that make prompts draw from it.
        order: brings prompts into another order.
        seeds: of the images whose lines give none.
        choose: decides variants.
    """

    rng: random.Random
    order: random.Random
    seeds: Iterator[int]
    choose: Choose


def newest(config: PromptSourceConfig, num_lines: int | None) -> Draws:
    """Return how gen_img draws.

    Args:
        num_lines: of a round, if that is known.
    """
    rng = random.Random(random_seed() if config.seed is None else config.seed)
    first = config.seed if _num_images(config, num_lines or 0) == 1 else None
    return Draws(rng, random.Random(config.seed), drawn_seeds(rng, first), drawn_for_seed)


def older(config: PromptSourceConfig, num_lines: int | None) -> Draws:
    """Return how sdxl_gen_img and gen_img_diffusers draw; typed lines have random seeds."""
    rng = random.Random(config.seed)
    seeds = seeds_ahead(config.seed, _num_images(config, num_lines or 0))
    return Draws(rng, rng, seeds, InOrder(rng))


def asked_by(
    lines: PromptLines, images: ImageList, draws: Draws, config: PromptSourceConfig
) -> Iterator[AskedImage]:
    """Yield the images of all rounds through the lines.

    Raises:
        UserError: a line asks for what cannot be.
    """
    for _ in range(config.n_iter):
        if config.shuffle_prompts:
            lines.shuffle(draws.order)
        shared = next(draws.seeds) if config.iter_same_seed else None
        images.begin_round()
        yield from _round(lines, images, draws, shared)


def _round(lines: PromptLines, images: ImageList, draws: Draws, shared: int | None) -> Iterator[AskedImage]:
    seeds, number = draws.seeds if shared is None else repeat(shared), 0
    while (line := lines.line(Place(number, images.num_in_round, shared, draws.rng))) is not None:
        yield from images.of_line(line, seeds)
        number += 1


def _num_images(config: PromptSourceConfig, num_lines: int) -> int:
    return config.n_iter * num_lines * config.images_per_prompt
