"""Data sets in numbers, as adapter files record them under sd-scripts' keys."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sfumato.data.batches.image_sets import PictureSet
from sfumato.data.captions.captions import tags
from sfumato.data.config.plan import SubsetPlan

_SUBSET_OPTIONS = ("color_aug", "flip_aug", "random_crop")
_CAPTION_OPTIONS = (
    "shuffle_caption",
    "keep_tokens",
    "keep_tokens_separator",
    "secondary_separator",
    "enable_wildcard",
    "caption_prefix",
    "caption_suffix",
)


def describe(pictures: PictureSet) -> dict[str, Any]:
    """Return one object of `ss_datasets`, keys in sd-scripts' order."""
    plan, buckets = pictures.plan, pictures.plan.buckets
    is_folders = all(subset.metadata_file is None for subset in plan.subsets)
    return {
        "is_dreambooth": is_folders,
        "batch_size_per_device": plan.batch_size,
        "num_train_images": pictures.num_train_images,
        "num_reg_images": pictures.num_reg_images,
        "resolution": list(buckets.resolution),
        "enable_bucket": pictures.has_buckets,
        "min_bucket_reso": buckets.min_size if buckets.enabled else None,
        "max_bucket_reso": buckets.max_size if buckets.enabled else None,
        "tag_frequency": tag_frequency(pictures),
        "bucket_info": bucket_info(pictures),
        "subsets": [_describe_subset(pictures, index) for index in range(len(plan.subsets))],
    }


def bucket_info(pictures: PictureSet) -> dict[str, Any] | None:
    """Return the buckets in use with their pictures (repeats counted) and the mean error of their ratios."""
    if not pictures.has_buckets:
        return None
    buckets = {
        str(number): {"resolution": list(size), "count": len(items)}
        for number, (size, items) in enumerate(sorted(pictures.buckets.items()))
    }
    errors = [abs(pictures.fit(index).ratio_error) for index in range(len(pictures.pictures))]
    return {"buckets": buckets, "mean_img_ar_error": math.fsum(errors) / len(errors)}


def tag_frequency(pictures: PictureSet) -> dict[str, dict[str, int]]:
    """Return how many pictures of each folder have each tag, repeats not counted."""
    counts: dict[str, Counter[str]] = {}
    for index, caption in enumerate(pictures.pictures.captions):
        counts.setdefault(pictures.subset(index).name, Counter()).update(tags(caption))
    return {name: dict(counter) for name, counter in counts.items()}


def folders(sets: Sequence[PictureSet], *, is_reg: bool) -> dict[str, dict[str, int]]:
    """Return `{name: {n_repeats, img_count}}` of each folder; a repeated name is numbered from 2."""
    found: dict[str, dict[str, int]] = {}
    for pictures in sets:
        for index, subset in enumerate(pictures.plan.subsets):
            if subset.is_reg == is_reg:
                count = _num_pictures(pictures, index)
                found[_free(subset.name, found)] = {"n_repeats": subset.num_repeats, "img_count": count}
    return found


def _describe_subset(pictures: PictureSet, index: int) -> dict[str, Any]:
    subset = pictures.plan.subsets[index]
    return {
        "img_count": _num_pictures(pictures, index),
        "num_repeats": subset.num_repeats,
        **{name: getattr(subset, name) for name in _SUBSET_OPTIONS},
        **{name: getattr(subset.captions, name) for name in _CAPTION_OPTIONS},
        **_source(subset),
    }


def _source(subset: SubsetPlan) -> dict[str, Any]:
    folder = {"image_dir": subset.image_dir.name} if subset.image_dir else {}
    if subset.metadata_file:
        return folder | {"metadata_file": subset.metadata_file.name}
    return folder | {"class_tokens": subset.class_tokens, "is_reg": subset.is_reg}


def _num_pictures(pictures: PictureSet, subset: int) -> int:
    return pictures.pictures.subsets.count(subset)


def _free(name: str, taken: dict[str, dict[str, int]]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name} ({number})", number + 1
    return candidate
