"""The training set: all images of a run, the batches of each epoch, and how one batch is loaded.

Everything is a pure function of the seed, the epoch and the item, so that order, workers and processes cannot
change what is trained.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sfumato import seeds
from sfumato.data.batches import fingerprint, render, statistics
from sfumato.data.batches.collate import Batch, Sample, collate
from sfumato.data.batches.fingerprint import Fingerprint
from sfumato.data.batches.image_sets import ImageSet
from sfumato.data.batches.order import BatchPlan, EpochPlan, OrderedImage, plan_epoch
from sfumato.data.batches.render import ImageView
from sfumato.data.captions import captions
from sfumato.data.config.plan import DatasetPlan
from sfumato.data.images import inpaint_masks
from sfumato.data.images.buckets import Size
from sfumato.data.images.images import BrokenImageError, stem
from sfumato.data.sources import sources
from sfumato.data.sources.complaints import Complaints
from sfumato.data.sources.image_table import ImageTable, TrainingImage
from sfumato.data.sources.index import Index
from sfumato.data.sources.validation import plan_for_validation
from sfumato.errors import UserError

MOST_SHOWINGS = 20_000_000
"""Images in an epoch, repeats counted, of which each takes 16 bytes while the epoch lasts."""


class LatentSource(Protocol):
    """Where cached latents come from; `sfumato.caching.latent_cache` has one."""

    def __call__(self, dataset: int, image: int, flipped: bool) -> Tensor:
        """Return (C, h, w), scaled.

        Raises:
            BrokenImageError: the image could not be encoded.
        """
        ...

    def mask(self, dataset: int, image: int, flipped: bool) -> Tensor | None:
        """Return the loss mask, (1, h, w) in [0, 1], of an image that has latents and a mask."""
        ...


class TextSource(Protocol):
    """Where cached outputs of text encoders come from; `sfumato.caching.texts` has one."""

    def __call__(self, dataset: int, image: int, caption: str) -> dict[str, Tensor]:
        """Return each output for an image's caption by name, without the batch dimension."""
        ...


class Showing(NamedTuple):
    """How an image is shown once."""

    image: TrainingImage
    caption: str
    view: ImageView


@dataclass
class TrainingSet:
    """All data sets of a run.

    Attributes:
        seed: of order, augmentation and captions.
        validation: the images that are not trained but measured, if there are any.
        broken: (path, reason) of each image that was left out when the folders were read.
        skipped: paths of images that turned out to be broken when they were loaded, with how often.
        max_steps: length of the run in optimizer steps, for a fractional token warmup; set it before loading.
        latents, texts: caches to load from instead of the image or beside the caption.
        index: what is known about the files beside the images.
    """

    sets: Sequence[ImageSet]
    seed: int
    validation: TrainingSet | None = None
    broken: Sequence[tuple[str, str]] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    max_steps: int = 0
    latents: LatentSource | None = None
    texts: TextSource | None = None
    index: Index = field(default_factory=Index)

    @property
    def num_train_images(self) -> int:
        """Images in an epoch that are not regularisation images, repeats counted."""
        return sum(images.num_train_images for images in self.sets)

    @property
    def num_reg_images(self) -> int:
        """Regularisation images, with the repeats asked for rather than those after balancing."""
        return sum(images.num_reg_images for images in self.sets)

    @property
    def num_showings(self) -> int:
        """Images in an epoch of either kind, repeats counted."""
        return sum(len(items) for images in self.sets for items in images.buckets.values())

    @property
    def num_batches(self) -> int:
        """Batches in an epoch, over all processes."""
        return sum(-(-len(items) // s.plan.batch_size) for s in self.sets for items in s.buckets.values())

    def short_batches(self) -> list[str]:
        """Return a line for each data set with buckets that hold fewer images than a batch."""
        return [line for images in self.sets if (line := images.short_batches())]

    @cached_property
    def has_shared_stems(self) -> bool:
        """Whether images differ in the suffix of their names alone, or are in two data sets."""
        stems = {hash(stem(path)) for s in self.sets for path in s.images.paths}
        return len(stems) < sum(len(s.images) for s in self.sets)

    def describe(self) -> list[dict[str, Any]]:
        """Return the `ss_datasets` record: one object per data set."""
        return [statistics.describe(images) for images in self.sets]

    def tag_frequency(self) -> dict[str, dict[str, int]]:
        """Return how many images of each folder have each tag; the first data set wins a repeated name."""
        merged: dict[str, dict[str, int]] = {}
        for images in self.sets:
            for name, counts in statistics.tag_frequency(images).items():
                merged.setdefault(name, counts)
        return merged

    def batches(self, epoch: int, *, num_per_step: int = 1) -> EpochPlan:
        """Return the batches of an epoch (counted from 1) in order; see `order.plan_epoch`."""
        return plan_epoch(
            [s.buckets for s in self.sets],
            [s.plan.batch_size for s in self.sets],
            seed=self.seed,
            epoch=epoch,
            num_per_step=num_per_step,
        )

    def fingerprint(self) -> Fingerprint:
        """Return digests of the images, their captions and the batches that they make."""
        return fingerprint.of_sets(self.sets)

    def __getitem__(self, plan: BatchPlan) -> Batch:
        """Load one batch; this makes the training set a map-style data set for torch's DataLoader."""
        return collate([self.load(plan, item) for item in plan.items])

    def load(self, plan: BatchPlan, item: OrderedImage) -> Sample:
        """Load one item of a batch; another of the same bucket stands in for a broken image.

        Raises:
            UserError: every image of the bucket is broken.
        """
        image_set = self.sets[plan.dataset]
        rng, seed_of_others = self._random(plan, item)
        skipped: list[str] = []
        for image in _with_substitutes(image_set, item, seed_of_others):
            try:
                return self._load(plan, image, rng, tuple(skipped))
            except BrokenImageError:  # noqa: PERF203 (hardly ever runs twice)
                skipped.append(image_set.images.paths[image])
        width, height = image_set.fit(item.image).bucket
        raise UserError(
            f"every image of bucket {width}x{height} is broken; replace {skipped[0]} and its like"
        )

    def showing(self, plan: BatchPlan, item: OrderedImage) -> Showing:
        """Return how one item of a batch is shown if its image is not broken; no pixels are loaded."""
        rng, _ = self._random(plan, item)
        return self._draw(plan, item.image, rng)

    def _random(self, plan: BatchPlan, item: OrderedImage) -> tuple[random.Random, int]:
        """Return what one showing is drawn from, and a seed for what stands in for a broken image."""
        rng = random.Random(seeds.derive("sample", self.seed, plan.epoch, plan.dataset, *item))
        return rng, rng.getrandbits(32)

    def _draw(self, plan: BatchPlan, index: int, rng: random.Random) -> Showing:
        image_set = self.sets[plan.dataset]
        image, subset, fit = image_set.images[index], image_set.subset(index), image_set.fit(index)
        flipped = subset.flip_aug and rng.random() < 0.5
        caption = captions.process(
            image.caption, subset.captions, rng, epoch=plan.epoch, step=plan.step, max_steps=self.max_steps
        )
        if self.latents:
            plain = render.plain(image.size, fit, flipped=flipped, interpolation=subset.resize_interpolation)
            return Showing(image, caption, plain)
        own_size = not image_set.has_buckets
        view = render.draw(image.path, image.size, fit, subset, rng, flipped=flipped, own_size=own_size)
        return Showing(image, caption, view)

    def _load(self, plan: BatchPlan, index: int, rng: random.Random, skipped: tuple[str, ...]) -> Sample:
        image_set = self.sets[plan.dataset]
        image, caption, view = self._draw(plan, index, rng)
        latents, pixels, mask = None, None, None
        if self.latents:
            latents = self.latents(plan.dataset, index, view.flipped)
            mask = self.latents.mask(plan.dataset, index, view.flipped)
        else:
            pixels, mask = render.render(image.path, view, image_set.mask(index))
        path, window = image_set.control(index), view.framing.size
        return Sample(
            path=image.path,
            caption=caption,
            original_size=_height_first(image.size),
            crop_offset=view.offset,
            target_size=_height_first(window),
            latents=latents,
            pixels=pixels,
            mask=mask,
            control=render.render_control(path, view) if path else None,
            inpaint_mask=inpaint_masks.draw(window, rng) if image_set.plan.train_inpainting else None,
            text=self.texts(plan.dataset, index, caption) if self.texts else {},
            loss_weight=image_set.plan.prior_loss_weight if image_set.subset(index).is_reg else 1.0,
            network_multiplier=image_set.plan.network_multiplier,
            custom_attributes=image_set.subset(index).custom_attributes,
            skipped=skipped,
        )


def read(
    plans: Sequence[DatasetPlan], seed: int, *, strict: bool = False, complaints: Complaints | None = None
) -> TrainingSet:
    """Read the folders of every data set: names, headers and captions, no pixels.

    Args:
        complaints: what gathers everything that is wrong, for callers who want to know; `strict` is its own.

    Raises:
        UserError: a data set has no image, all of them are for validation, or `strict` and anything is wrong.
    """
    complaints, index = complaints or Complaints(strict), Index()
    try:
        tables = [sources.read_split(plan, complaints, index) for plan in plans]
    finally:
        index.save()
    _check_length(plans, [trained for trained, _ in tables])
    sets = [ImageSet(plan, trained) for plan, (trained, _) in zip(plans, tables, strict=True) if trained]
    if not sets:
        share = plans[0].validation_split
        raise UserError(f"validation_split {share} leaves no image to train on; use a smaller share")
    held_back = [
        ImageSet(plan_for_validation(plan), rest)
        for plan, (_, rest) in zip(plans, tables, strict=True)
        if rest
    ]
    validation = TrainingSet(held_back, seed, index=index) if held_back else None
    return TrainingSet(sets, seed, validation, broken=complaints.broken, index=index)


def _check_length(plans: Sequence[DatasetPlan], tables: Sequence[ImageTable]) -> None:
    """Raise UserError for an epoch so long that planning it would fill the memory."""
    num_showings = sum(sum(table.repeats) for table in tables)
    if num_showings > MOST_SHOWINGS:
        most = max((subset for plan in plans for subset in plan.subsets), key=lambda it: it.num_repeats)
        raise UserError(
            f"an epoch would show {num_showings:,} images, more than {MOST_SHOWINGS:,}; num_repeats of "
            f"{most.source} is {most.num_repeats}: use fewer repeats, and more epochs"
        )


def _with_substitutes(image_set: ImageSet, item: OrderedImage, seed: int) -> Iterator[int]:
    """Return the image, then others of its bucket in random order; lazily, for it is hardly ever needed."""
    yield item.image
    bucket = image_set.buckets[image_set.fit(item.image).bucket]
    others = sorted({*bucket.images} - {item.image})
    random.Random(seed).shuffle(others)
    yield from others


def _height_first(size: Size) -> tuple[int, int]:
    return size[1], size[0]
