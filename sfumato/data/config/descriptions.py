"""What a user said about the data, as tables of checked keys: from a file, or from folders and options."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfumato.config import json_text, toml_text
from sfumato.config.rules.strictness import is_strict
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.tools.report import ReportConfig
from sfumato.data.config.folders import has_images, has_subset_folders, subset_folders
from sfumato.data.config.toml_keys import DATASET, GENERAL, KEYS, SUBSET, read_table
from sfumato.errors import UserError
from sfumato.hub.access import HubAccess, access_for
from sfumato.hub.fetching import located_folder

EITHER = "conditioning_data_dir"
"""Key of a folder of masks or of control images, as the script will have it."""

PARTNERS = (EITHER, "mask_dir", "control_dir")
"""Keys of folders of partner images."""

_FOLDERS = ("train_data_dir", "reg_data_dir", *PARTNERS)
_REPLACED = (*_FOLDERS, "in_json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Described:
    """One data set as described.

    Attributes:
        where: it is described, for messages.
        general, own: keys of `[general]` and of the data set itself.
        subsets: keys of each subset.
    """

    where: str
    general: Mapping[str, Any]
    own: Mapping[str, Any]
    subsets: tuple[Mapping[str, Any], ...]


def describe(run: Run) -> list[Described]:
    """Return the data sets that a run describes: in its file, or else by its options.

    Raises:
        UserError: nothing is described, or a key is unknown, misplaced or of a wrong type.
    """
    path, access = run[DatasetConfig].dataset_config, access_for(run)
    if not path:
        return [_from_options(_fetched(run, access))]
    found = _from_file(run, path)
    return [replace(one, subsets=tuple(_with_folders(one, access))) for one in found]


def asks_for_inpainting(run: Run) -> bool:
    """Return whether any data set of a run is to teach the model to repaint parts of images.

    Raises:
        UserError: the file that describes the data sets is broken.
    """
    path, usual = run[DatasetConfig].dataset_config, run[ImageConfig].train_inpainting
    if not path:
        return usual
    tables = ({**described.general, **described.own} for described in _from_file(run, path))
    return any(table.get("train_inpainting", usual) for table in tables)


def _fetched(run: Run, access: HubAccess) -> Run:
    """Return the run with the folders that its options name, fetched if they are on the Hub."""
    config = run[DatasetConfig]
    given = {name: folder for name in _FOLDERS if (folder := getattr(config, name))}
    found = {name: str(_folder(folder, f"--{name}", access)) for name, folder in given.items()}
    return run.with_sections(replace(config, **found))


def _with_folders(described: Described, access: HubAccess) -> Iterator[Mapping[str, Any]]:
    """Yield the tables of subsets likewise."""
    for number, subset in enumerate(described.subsets, 1):
        given = {key: subset[key] for key in ("image_dir", *PARTNERS) if subset.get(key)}
        where = f"{described.where}, {SUBSET} {number}"
        yield {**subset, **{key: _folder(at, f"{where}: {key}", access) for key, at in given.items()}}


def _folder(folder: str | Path, option: str, access: HubAccess) -> Path:
    return located_folder(folder, option, "dataset", access)


def _from_file(run: Run, path: Path) -> list[Described]:
    for name in _REPLACED:
        if getattr(run[DatasetConfig], name):
            logger.warning("--%s is ignored: --dataset_config says where the images are", name)
    content = _parse(path)
    if "datasets" not in content and _options_in(content, run):
        raise UserError(f"--dataset_config {path} holds options of a run; give it as --config_file")
    for name in content.keys() - {"general", "datasets"}:
        raise UserError(f"{path}: {name!r} is not known here; the file has [general] and [[datasets]]")
    general = read_table(content.get("general") or {}, GENERAL, f"{path}, {GENERAL}")
    datasets = _tables(content.get("datasets"), str(path), DATASET)
    if not datasets:
        raise UserError(f"{path} has no [[datasets]]; describe at least one")
    return [_describe(path, number, table, general) for number, table in enumerate(datasets, 1)]


def _options_in(content: Mapping[str, Any], run: Run) -> set[str]:
    """Return the keys that are options and no keys of data sets, in tables of one level, too."""
    tables = [table for name, table in content.items() if isinstance(table, dict) and name != "general"]
    return (content.keys() | {key for table in tables for key in table}) & run.values().keys() - KEYS.keys()


def _parse(path: Path) -> dict[str, Any]:
    readers = {".toml": toml_text.parse, ".json": json_text.parse}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"--dataset_config is {path}; use a .toml or .json file")
    try:
        content = reader(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"--dataset_config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--dataset_config {path} is not valid {path.suffix[1:]}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f'--dataset_config {path} holds no object; write {{"datasets": [...]}}')
    return content


def _describe(path: Path, number: int, table: Any, general: Mapping[str, Any]) -> Described:
    where = f"{path}, {DATASET} {number}"
    own = (
        {key: value for key, value in table.items() if key != "subsets"} if isinstance(table, dict) else table
    )
    values = read_table(own, DATASET, where)
    subsets = [
        read_table(subset, SUBSET, f"{where}, {SUBSET} {position}")
        for position, subset in enumerate(_tables(table.get("subsets"), where, SUBSET), 1)
    ]
    return Described(where, general, values, tuple(subsets))


def _tables(value: Any, where: str, kind: str) -> list[Any]:
    if not isinstance(value or [], list):
        raise UserError(f"{where}: {kind} is {value!r}; write it with double brackets, as a list of tables")
    return value or []


def _from_options(run: Run) -> Described:
    config = run[DatasetConfig]
    partners = {key: folder for key in PARTNERS if (folder := getattr(config, key))}
    if config.in_json:
        for key in partners:
            raise UserError(f"--in_json excludes --{key}: its images have no partners")
        subset = {"metadata_file": Path(config.in_json)}
        if config.train_data_dir:
            subset["image_dir"] = Path(config.train_data_dir)
        return Described("--in_json", {}, {}, (subset,))
    if not config.train_data_dir:
        raise UserError("no training data is given; use --dataset_config or --train_data_dir")
    is_flat = ReportConfig in run and not has_subset_folders(config.train_data_dir)
    if (partners or is_flat) and has_images(config.train_data_dir):
        subsets = [_paired({"image_dir": Path(config.train_data_dir)}, partners)]
    else:
        subsets = _from_folders(config, partners, is_strict(run))
    return Described("--train_data_dir", {}, {}, tuple(subsets))


def _from_folders(config: DatasetConfig, partners: Mapping[str, str], strict: bool) -> list[dict[str, Any]]:
    assert config.train_data_dir is not None
    subsets = subset_folders("train_data_dir", config.train_data_dir, strict=strict)
    subsets = [_paired(subset, partners) for subset in subsets]
    if config.reg_data_dir:
        reg = subset_folders("reg_data_dir", config.reg_data_dir, strict=strict)
        subsets += [{**subset, "is_reg": True} for subset in reg]
    return subsets


def _paired(subset: dict[str, Any], partners: Mapping[str, str]) -> dict[str, Any]:
    """Give a subset its folders of partner images: sub-folders of the same name where there are any."""
    own = {key: os.path.join(folder, subset["image_dir"].name) for key, folder in partners.items()}
    found = {key: Path(own[key] if os.path.isdir(own[key]) else partners[key]) for key in partners}
    return {**subset, **found}
