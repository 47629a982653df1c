"""Validation images: not trained, but measured."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from sfumato.data.config.plan import DatasetPlan, SubsetPlan

T = TypeVar("T")


def split(images: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Return (trained, for validation), each in order: a function of the seed and of the images' order alone.

    The trained ones are those that sd-scripts trains. It rounds both numbers on their own, so that an image
    may be in both; here none is.
    """
    order = list(range(len(images)))
    random.Random(seed).shuffle(order)
    num_trained = math.ceil(len(images) * (1 - share))
    trained, held_back = (sorted(part) for part in (order[:num_trained], order[num_trained:]))
    return [images[i] for i in trained], [images[i] for i in held_back]


def plan_for_validation(plan: DatasetPlan) -> DatasetPlan:
    """Return the plan by which validation images are shown: once, and as they are."""
    return replace(plan, subsets=tuple(map(_plain, plan.subsets)))


def _plain(subset: SubsetPlan) -> SubsetPlan:
    captions = replace(
        subset.captions,
        shuffle_caption=subset.captions.rearranges_tags,  # so that marks between tags are read the same way
        token_warmup_step=0,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
    )
    return replace(
        subset,
        captions=captions,
        num_repeats=1,
        flip_aug=False,
        color_aug=False,
        random_crop=False,
        face_crop_aug_range=None,
    )
