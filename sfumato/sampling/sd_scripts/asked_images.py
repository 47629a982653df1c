"""The images that prompt lines ask for, one after the other: variants, seeds, files to start from."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from sfumato.sampling.prompts import variants
from sfumato.sampling.prompts.image_options import ImageOptions, parse_image_line, seeds_of
from sfumato.sampling.request import Request
from sfumato.sampling.sd_scripts.line_defaults import LineDefaults
from sfumato.sampling.sd_scripts.start_files import NO_FILES, StartFiles, size_of


@dataclass(frozen=True)
class AskedImage:
    """One image of a run.

    Attributes:
        line: it is made of, as it was written but for its variants.
        number: of the image in the whole run, from 0.
        file_name: that the line gives it.
    """

    line: str
    request: Request
    number: int
    file_name: str | None = None

    @property
    def start(self) -> Path | None:
        """The image that it starts from."""
        return Path(self.request.image) if self.request.image else None


class Choose(Protocol):
    """Decides what a text with variants says for the image that has a seed."""

    def __call__(self, text: str, seed: int) -> str:
        """Return the text with a choice in each group."""
        ...


@dataclass(frozen=True)
class InOrder:
    """Draw variants one after the other, as older scripts do, whatever the image's seed is."""

    rng: random.Random

    def __call__(self, text: str, seed: int) -> str:
        """Return the text with the next choices."""
        return variants.drawn(text, self.rng)


class ImageList:
    """Turns lines into images; what it made so far decides what the next line means.

    Args:
        defaults: what lines leave open. Deep shrink and gradual latent stay as the line before had them.
        choose: decides variants.
        images_per_line: images of a line without enumerated variants.
        starts: what images start from.

    Attributes:
        num_images: how many were asked for so far.
        num_in_round: how many of these since `begin_round`; files to start from begin anew with a round.
    """

    def __init__(
        self, defaults: LineDefaults, choose: Choose, images_per_line: int = 1, starts: StartFiles = NO_FILES
    ) -> None:
        self.num_images = 0
        self.num_in_round = 0
        self._defaults = defaults
        self._current = defaults.request
        self._choose = choose
        self._images_per_line = images_per_line
        self._starts = starts

    def of_line(self, line: str, seeds: Iterator[int]) -> Iterator[AskedImage]:
        """Yield the images of a line.

        Args:
            seeds: of those whose line gives none.

        Raises:
            UserError: a line enumerates too many variants, or an image to start from cannot be read.
        """
        said, names = seeds_of(line), set[str]()
        for place, text in enumerate(self._texts(line)):
            seed = said[min(place, len(said) - 1)] if said else next(seeds)
            chosen = self._choose(text, seed)
            options = parse_image_line(chosen)
            if options.seeds and not said:  # they stand within a variant
                seed = options.seeds[min(place, len(options.seeds) - 1)]
            name = None if options.file_name in names else options.file_name
            names.add(name or "")
            yield AskedImage(chosen, self._request(options, seed), self.num_images, name)
            self.num_images += 1
            self.num_in_round += 1

    def begin_round(self) -> None:
        """Begin with the first file to start from again."""
        self.num_in_round = 0

    def _texts(self, line: str) -> list[str]:
        texts = variants.enumerated(line)
        return texts * self._images_per_line if len(texts) == 1 else texts

    def _request(self, options: ImageOptions, seed: int) -> Request:
        defaults = self._defaults
        made = options.request(self._current, defaults.deep_shrink, defaults.gradual_latent)
        self._current = replace(
            self._current, deep_shrink=made.deep_shrink, gradual_latent=made.gradual_latent
        )
        return replace(made, seed=seed, **self._start(options))

    def _start(self, options: ImageOptions) -> dict[str, Any]:
        """Return the fields of a request that follow from the image it starts from."""
        image, mask = self._starts.image(self.num_in_round), self._starts.mask(self.num_in_round)
        if image is None:
            return {}
        files = {"image": str(image), "mask": str(mask) if mask else None}
        if not self._starts.has_own_size:
            return files
        width, height = size_of(image)
        return {**files, **{"width": width, "height": height} | _sides(options)}


def _sides(options: ImageOptions) -> dict[str, int]:
    return {name: options.image[name] for name in ("width", "height") if name in options.image}


def batches_of(images: Iterable[AskedImage], largest: int) -> Iterator[list[AskedImage]]:
    """Yield the images that are made at once: neighbours of equal settings, at most `largest`.

    A batch that is full is yielded before the next image is asked for.
    """
    batch: list[AskedImage] = []
    for image in images:
        if batch and image.request.settings != batch[0].request.settings:
            yield batch
            batch = []
        batch.append(image)
        if len(batch) == largest:
            yield batch
            batch = []
    if batch:
        yield batch
