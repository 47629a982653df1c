"""From options and a `--dataset_config` file to plans in which every setting is resolved.

A setting is taken from the subset, else its data set, else `[general]`, else the command line or its default.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.words import WordsConfig
from sfumato.data.captions import templates
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.config.descriptions import PARTNERS, Described, describe
from sfumato.data.config.metadata_records import train_sizes
from sfumato.data.config.partner_folders import with_roles
from sfumato.data.config.plan import DatasetPlan, SubsetPlan
from sfumato.data.config.subset_kinds import DESCRIBED, Kind, are_compatible, kind_of
from sfumato.data.config.toml_keys import KEYS, SUBSET, refuse_other_kinds
from sfumato.data.images.buckets import Buckets, round_limits
from sfumato.errors import UserError

MOST_REPEATS = 100_000
"""Showings of one image in an epoch: what comes after so many is better called the next epoch."""

logger = logging.getLogger(__name__)


def plans(
    run: Run,
    *,
    size_multiple: int = 8,
    seed: int = 0,
    takes_latents: bool = False,
    latents_ending: str = "",
) -> list[DatasetPlan]:
    """Return the data sets that a run asks for.

    Args:
        size_multiple: what sides of trained images must be multiples of: the family's downscale * patch.
        seed: of the run; chooses the images for validation where no seed is given for that.
        takes_latents: whether images may be there as latents alone.
        latents_ending: see `DatasetPlan`.

    Raises:
        UserError: something is missing, unknown, or of a wrong type.
    """
    described = [_checked(dataset, run) for dataset in describe(run)]
    options = _from_options(run)
    for dataset in described:
        _name_unheard(dataset, options)
    options, weight = {"validation_seed": seed, **options}, run[LossConfig].prior_loss_weight
    sentences = _templates(run.get(WordsConfig, WordsConfig()))
    planned = (
        _with_templates(_plan(dataset, options, weight, size_multiple), sentences) for dataset in described
    )
    return [replace(plan, takes_latents=takes_latents, latents_ending=latents_ending) for plan in planned]


def _templates(config: WordsConfig) -> tuple[str, ...]:
    """Return the sentences that captions are replaced by, if they are."""
    word = config.token_string or ""
    if config.use_object_template:
        return templates.of_object(word)
    return templates.of_style(word) if config.use_style_template else ()


def _with_templates(plan: DatasetPlan, sentences: tuple[str, ...]) -> DatasetPlan:
    """Return a data set whose captions are replaced by one of some sentences, if there are any."""
    if not sentences:
        return plan
    subsets = [replace(s, captions=replace(s.captions, templates=sentences)) for s in plan.subsets]
    return replace(plan, subsets=tuple(subsets))


def _checked(dataset: Described, run: Run) -> Described:
    """Return a data set whose subsets go together, and each key of which says something about its subset."""
    if not dataset.subsets:
        raise UserError(f"{dataset.where} has no subsets; name at least one folder of images")
    if not are_compatible(map(kind_of, dataset.subsets)):
        raise UserError(
            f"{dataset.where}: some subsets have metadata_file and some have not; "
            "put them into [[datasets]] of their own"
        )
    dataset = with_roles(dataset, run)
    kinds: list[Kind] = [kind_of(subset) for subset in dataset.subsets]
    refuse_other_kinds(dataset.own, kinds, dataset.where)
    for number, (subset, kind) in enumerate(zip(dataset.subsets, kinds, strict=True), 1):
        refuse_other_kinds(subset, [kind], f"{dataset.where}, {SUBSET} {number}")
    return dataset


def _name_unheard(dataset: Described, options: Mapping[str, Any]) -> None:
    """Say which settings from further up mean nothing to any subset of a data set."""
    kinds: set[Kind] = {kind_of(subset) for subset in dataset.subsets}
    asked = [*dataset.general, *(name for name in ("alpha_mask", "cache_info") if options[name])]
    for name in dict.fromkeys(name for name in asked if not kinds & set(KEYS[name].kinds)):
        here = " and ".join(words for kind, words in DESCRIBED.items() if kind in kinds)
        logger.warning("%s: %s has no effect on %s", dataset.where, name, here)


def _from_options(run: Run) -> dict[str, Any]:
    """Return what the command line says about each key; its names are mostly those of the file."""
    dataset, captions, images = run[DatasetConfig], run[CaptionConfig], run[ImageConfig]
    found = {
        "batch_size": dataset.train_batch_size,
        "num_repeats": dataset.dataset_repeats,
        "caption_extension": captions.caption_extention or captions.caption_extension,
    }
    for section in (dataset, captions, images):
        names = KEYS.keys() & {field.name for field in fields(section)} - {"caption_extension"}
        found |= {name: getattr(section, name) for name in names.difference(PARTNERS)}
    given = {name: value for name, value in found.items() if value is not None}
    return {name: KEYS[name].read(name, value, "command line") for name, value in given.items()}


def _plan(dataset: Described, options: Mapping[str, Any], weight: float, size_multiple: int) -> DatasetPlan:
    values = ChainMap(dict(dataset.own), dict(dataset.general), dict(options))
    subsets = [ChainMap(dict(subset), *values.maps) for subset in dataset.subsets]
    planned = _without_duplicates((_subset(table, dataset.where) for table in subsets), dataset.where)
    if values["bucket_no_upscale"]:
        _refuse_own_sizes(planned, dataset.where)
    return DatasetPlan(
        subsets=planned,
        buckets=_buckets(_with_resolution(values, planned, size_multiple), dataset.where, size_multiple),
        batch_size=values["batch_size"],
        network_multiplier=values.get("network_multiplier", 1.0),
        prior_loss_weight=weight,
        validation_split=values["validation_split"],
        validation_seed=values["validation_seed"],
        train_inpainting=values["train_inpainting"],
        skipped_size=values.get("skip_image_resolution"),
        size_multiple=size_multiple,
    )


def _subset(values: Mapping[str, Any], where: str) -> SubsetPlan:
    kind = kind_of(values)
    if "image_dir" not in values and kind != "metadata":
        raise UserError(f"{where}: a subset has no image_dir; name the folder of its images")
    if values["num_repeats"] > MOST_REPEATS:
        repeats = values["num_repeats"]
        raise UserError(f"{where}: num_repeats is {repeats}; use {MOST_REPEATS} or less, and more epochs")
    known = {name: value for name, value in values.items() if kind in KEYS[name].kinds}
    captions = {field.name for field in fields(CaptionSettings)}
    own = {field.name for field in fields(SubsetPlan)} - {"caption_extension", "image_dir"}
    extension = values["caption_extension"]
    settings = CaptionSettings(**{name: known[name] for name in captions & known.keys()})
    if settings.rearranges_tags and not settings.caption_separator:
        raise UserError(
            f"{where}: caption_separator is empty, and {settings.varying()[0]} needs one; ',' is usual"
        )
    return SubsetPlan(
        image_dir=known.get("image_dir"),
        caption_extension=extension if extension.startswith(".") else f".{extension}",
        captions=settings,
        **{name: known[name] for name in own & known.keys()},
    )


def _without_duplicates(subsets: Iterable[SubsetPlan], where: str) -> tuple[SubsetPlan, ...]:
    by_source: dict[tuple[Any, ...], SubsetPlan] = {}
    for subset in subsets:
        identity = (subset.source, subset.mask_dir, subset.control_dir)
        if identity in by_source:
            logger.warning("%s: %s is named twice; the second is ignored", where, subset.source)
        by_source.setdefault(identity, subset)
    return tuple(by_source.values())


def _with_resolution(
    values: Mapping[str, Any], subsets: Iterable[SubsetPlan], unit: int
) -> Mapping[str, Any]:
    """Where no resolution is given, take it from metadata files that give one for each image."""
    files = [subset.metadata_file for subset in subsets if subset.metadata_file]
    if "resolution" in values or not files:
        return values
    sizes = train_sizes(files)
    if not sizes:
        return values
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    largest = (width // unit * unit, height // unit * unit)
    return {**values, "resolution": largest, "enable_bucket": False}


def _refuse_own_sizes(subsets: Iterable[SubsetPlan], where: str) -> None:
    """Raise UserError for a metadata file that gives every image its size, which buckets would change."""
    for file in (subset.metadata_file for subset in subsets if subset.metadata_file):
        if train_sizes([file]):
            raise UserError(
                f"{where}: bucket_no_upscale makes buckets of the images' sizes, and {file} says "
                "train_resolution; leave one of them out"
            )


def _buckets(values: Mapping[str, Any], where: str, size_multiple: int) -> Buckets:
    if "resolution" not in values:
        raise UserError(f"{where}: no resolution is given; add resolution = 1024, or --resolution 1024")
    resolution = values["resolution"]
    if not values["enable_bucket"]:
        if any(side % size_multiple for side in resolution):
            raise UserError(f"{where}: resolution is {resolution}; use multiples of {size_multiple}")
        return Buckets(resolution, enabled=False)
    step = _step(values["bucket_reso_steps"], where, size_multiple)
    least, most = _limits(values, where, step)
    return Buckets(resolution, least, most, step, values["bucket_no_upscale"])


def _step(asked: int, where: str, size_multiple: int) -> int:
    """Return what bucket sides are multiples of; a step too fine for the model is the finest it takes."""
    if asked % size_multiple == 0:
        return asked
    if size_multiple % asked:
        raise UserError(f"{where}: bucket_reso_steps is {asked}; use a multiple of {size_multiple}")
    logger.warning(
        "%s: bucket_reso_steps is %d; the model needs multiples of %d", where, asked, size_multiple
    )
    return size_multiple


def _limits(values: Mapping[str, Any], where: str, step: int) -> tuple[int, int]:
    """Round the limits of bucket sides to `step`, and see that the resolution lies between them."""
    asked, resolution = (values["min_bucket_reso"], values["max_bucket_reso"]), values["resolution"]
    least, most = round_limits(*asked, step)
    if values["bucket_no_upscale"]:
        return least, most
    if (least, most) != asked:
        logger.warning(
            "%s: min_bucket_reso %d, max_bucket_reso %d become %d, %d: multiples of bucket_reso_steps %d",
            *(where, *asked, least, most, step),
        )
    if min(resolution) < least:
        raise UserError(f"{where}: min_bucket_reso {least} exceeds resolution {resolution}; lower it")
    if max(resolution) > most:
        raise UserError(f"{where}: max_bucket_reso {most} is below resolution {resolution}; raise it")
    return least, most
