"""From options and a `--dataset_config` file to plans in which every setting is resolved.

A setting is taken from the subset, else its data set, else `[general]`, else the command line or its default.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sfumato.config.captions import CaptionConfig
from sfumato.config.dataset import DatasetConfig
from sfumato.config.file import FileConfig
from sfumato.config.images import ImageConfig
from sfumato.config.loss import LossConfig
from sfumato.config.run import Run
from sfumato.data.buckets import Buckets, round_limits
from sfumato.data.captions import CaptionSettings
from sfumato.data.folders import subset_folders
from sfumato.data.keys import DATASET, GENERAL, KEYS, SUBSET, read_table
from sfumato.data.plan import DatasetPlan, SubsetPlan
from sfumato.errors import UserError

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

NOT_SUPPORTED = (
    "metadata_file",
    "conditioning_data_dir",
    "color_aug",
    "random_crop",
    "face_crop_aug_range",
    "alpha_mask",
    "cache_info",
    "resize_interpolation",
    "custom_attributes",
    "validation_split",
)
"""Keys that are known, but stop a run if they are given anything but their default."""

_IGNORED = ("train_data_dir", "reg_data_dir", "in_json", "conditioning_data_dir")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Described:
    """One data set as described: the tables of its subsets and of itself, the nearest first."""

    where: str
    tables: tuple[Mapping[str, Any], ...]
    subsets: tuple[Mapping[str, Any], ...]


def plans(run: Run, *, size_multiple: int = 8) -> list[DatasetPlan]:
    """Return the data sets that a run asks for.

    Args:
        size_multiple: what sides of trained pictures must be multiples of: the family's downscale * patch.

    Raises:
        UserError: something is missing, unknown, of a wrong type, or not supported yet.
    """
    path = run[DatasetConfig].dataset_config
    described = _from_file(run, path) if path else [_from_folders(run)]
    options = _from_options(run)
    weight = run[LossConfig].prior_loss_weight
    return [_plan(dataset, options, weight, size_multiple) for dataset in described]


def _from_file(run: Run, path: Path) -> list[_Described]:
    for name in _IGNORED:
        if getattr(run[DatasetConfig], name):
            logger.warning("--%s is ignored: --dataset_config says where the pictures are", name)
    content = _parse(path)
    for name in content.keys() - {"general", "datasets"}:
        raise UserError(f"{path}: {name!r} is not known here; the file has [general] and [[datasets]]")
    general = read_table(content.get("general") or {}, GENERAL, f"{path}, {GENERAL}")
    datasets = _tables(content.get("datasets"), str(path), DATASET)
    if not datasets:
        raise UserError(f"{path} has no [[datasets]]; describe at least one")
    return [_described(path, number, table, general) for number, table in enumerate(datasets, 1)]


def _parse(path: Path) -> dict[str, Any]:
    readers = {".toml": tomllib.loads, ".json": json.loads}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"--dataset_config is {path}; use a .toml or .json file")
    try:
        return reader(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"--dataset_config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--dataset_config {path} is not valid {path.suffix[1:]}: {error}") from error


def _described(path: Path, number: int, table: Any, general: Mapping[str, Any]) -> _Described:
    where = f"{path}, {DATASET} {number}"
    own = (
        {key: value for key, value in table.items() if key != "subsets"} if isinstance(table, dict) else table
    )
    values = read_table(own, DATASET, where)
    subsets = [
        read_table(subset, SUBSET, f"{where}, {SUBSET} {position}")
        for position, subset in enumerate(_tables(table.get("subsets"), where, SUBSET), 1)
    ]
    return _Described(where, (values, general), tuple(subsets))


def _tables(value: Any, where: str, kind: str) -> list[Any]:
    if not isinstance(value or [], list):
        raise UserError(f"{where}: {kind} is {value!r}; write it with double brackets, as a list of tables")
    return value or []


def _from_folders(run: Run) -> _Described:
    config = run[DatasetConfig]
    for name in ("in_json", "dataset_class", "conditioning_data_dir"):
        if getattr(config, name):
            raise UserError(f"--{name} is not supported yet; describe the pictures with --dataset_config")
    if not config.train_data_dir:
        raise UserError("no training data is given; use --dataset_config or --train_data_dir")
    strict = run[FileConfig].strict
    subsets = subset_folders("train_data_dir", config.train_data_dir, strict=strict)
    if config.reg_data_dir:
        reg = subset_folders("reg_data_dir", config.reg_data_dir, strict=strict)
        subsets += [{**subset, "is_reg": True} for subset in reg]
    return _Described("--train_data_dir", (), tuple(subsets))


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
        found |= {name: getattr(section, name) for name in names - {"conditioning_data_dir"}}
    given = {name: value for name, value in found.items() if value is not None}
    return {name: KEYS[name].read(name, value, "command line") for name, value in given.items()}


def _plan(dataset: _Described, options: Mapping[str, Any], weight: float, size_multiple: int) -> DatasetPlan:
    values = ChainMap(*map(dict, (*dataset.tables, options)))
    subsets = [ChainMap(dict(subset), *values.maps) for subset in dataset.subsets]
    for table in (values, *subsets):
        _refuse_unsupported(table, dataset.where)
    return DatasetPlan(
        subsets=_without_duplicates((_subset(table, dataset.where) for table in subsets), dataset.where),
        buckets=_buckets(values, dataset.where, size_multiple),
        batch_size=values["batch_size"],
        network_multiplier=values.get("network_multiplier", 1.0),
        prior_loss_weight=weight,
    )


def _refuse_unsupported(values: Mapping[str, Any], where: str) -> None:
    for name in NOT_SUPPORTED:
        if values.get(name):
            raise UserError(f"{where}: {name} is not supported yet; leave it out")


def _subset(values: Mapping[str, Any], where: str) -> SubsetPlan:
    if "image_dir" not in values:
        raise UserError(f"{where}: a subset has no image_dir; name the folder of its pictures")
    extension = values["caption_extension"]
    captions = {field.name for field in fields(CaptionSettings)}
    own = {field.name for field in fields(SubsetPlan)} - {"image_dir", "caption_extension"}
    return SubsetPlan(
        image_dir=Path(values["image_dir"]),
        caption_extension=extension if extension.startswith(".") else f".{extension}",
        captions=CaptionSettings(**{name: values[name] for name in captions & values.keys()}),
        **{name: values[name] for name in own & values.keys()},
    )


def _without_duplicates(subsets: Iterable[SubsetPlan], where: str) -> tuple[SubsetPlan, ...]:
    by_folder: dict[Path, SubsetPlan] = {}
    for subset in subsets:
        if subset.image_dir in by_folder:
            logger.warning("%s: %s is named twice; the second is ignored", where, subset.image_dir)
        by_folder.setdefault(subset.image_dir, subset)
    if not by_folder:
        raise UserError(f"{where} has no subsets; name at least one folder of pictures")
    return tuple(by_folder.values())


def _buckets(values: Mapping[str, Any], where: str, size_multiple: int) -> Buckets:
    if "resolution" not in values:
        raise UserError(f"{where}: no resolution is given; add resolution = 1024, or --resolution 1024")
    resolution = values["resolution"]
    if not values["enable_bucket"]:
        if any(side % size_multiple for side in resolution):
            raise UserError(f"{where}: resolution is {resolution}; use multiples of {size_multiple}")
        return Buckets(resolution, enabled=False)
    step = values["bucket_reso_steps"]
    if step % size_multiple:
        raise UserError(f"{where}: bucket_reso_steps is {step}; use a multiple of {size_multiple}")
    least, most = _limits(values, where, step)
    return Buckets(resolution, least, most, step, values["bucket_no_upscale"])


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
