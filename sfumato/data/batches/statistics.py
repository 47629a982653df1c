"""Data sets in numbers, as adapter files record them under sd-scripts' keys."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sfumato.data.batches.image_sets import ImageSet
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


def describe(image_set: ImageSet) -> dict[str, Any]:
    """Return one object of `ss_datasets`, keys in sd-scripts' order."""
    plan, buckets = image_set.plan, image_set.plan.buckets
    is_folders = all(subset.metadata_file is None for subset in plan.subsets)
    return {
        "is_dreambooth": is_folders,
        "batch_size_per_device": plan.batch_size,
        "num_train_images": image_set.num_train_images,
        "num_reg_images": image_set.num_reg_images,
        "resolution": list(buckets.resolution),
        "enable_bucket": image_set.has_buckets,
        "min_bucket_reso": buckets.min_size if buckets.enabled else None,
        "max_bucket_reso": buckets.max_size if buckets.enabled else None,
        "tag_frequency": tag_frequency(image_set),
        "bucket_info": bucket_info(image_set),
        "subsets": [_describe_subset(image_set, index) for index in range(len(plan.subsets))],
    }


def bucket_info(image_set: ImageSet) -> dict[str, Any] | None:
    """Return the buckets in use with their images (repeats counted) and the mean error of their ratios."""
    if not image_set.has_buckets:
        return None
    buckets = {
        str(number): {"resolution": list(size), "count": len(items)}
        for number, (size, items) in enumerate(sorted(image_set.buckets.items()))
    }
    errors = [abs(image_set.fit(index).ratio_error) for index in range(len(image_set.images))]
    return {"buckets": buckets, "mean_img_ar_error": math.fsum(errors) / len(errors)}


def tag_frequency(image_set: ImageSet) -> dict[str, dict[str, int]]:
    """Return how many images of each folder have each tag, repeats not counted; in the order of subsets."""
    used, counts = set(image_set.images.subsets), dict[str, Counter[str]]()
    for number, subset in enumerate(image_set.plan.subsets):
        if number in used:
            counts.setdefault(subset.name, Counter())
    for index, caption in enumerate(image_set.images.captions):
        subset = image_set.subset(index)
        counts[subset.name].update(tags(caption, subset.captions.keep_tokens_separator))
    return {name: dict(counter) for name, counter in counts.items()}


def folders(sets: Sequence[ImageSet], *, is_reg: bool) -> dict[str, dict[str, int]]:
    """Return `{name: {n_repeats, img_count}}` of each folder; a repeated name is numbered from 2."""
    found: dict[str, dict[str, int]] = {}
    for image_set in sets:
        for index, subset in enumerate(image_set.plan.subsets):
            if subset.is_reg == is_reg:
                count = _num_images(image_set, index)
                found[_free(subset.name, found)] = {"n_repeats": subset.num_repeats, "img_count": count}
    return found


def _describe_subset(image_set: ImageSet, index: int) -> dict[str, Any]:
    subset = image_set.plan.subsets[index]
    return {
        "img_count": _num_images(image_set, index),
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


def _num_images(image_set: ImageSet, subset: int) -> int:
    return image_set.images.subsets.count(subset)


def _free(name: str, taken: dict[str, dict[str, int]]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name} ({number})", number + 1
    return candidate
