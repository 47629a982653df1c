"""The keys of a `--dataset_config` file: what each accepts and where it may stand.

Types are a little more tolerant than in sd-scripts, because front-ends write 0/1 for booleans, integral
floats for integers and integers for floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sfumato.data.config.subset_kinds import ALL, DESCRIBED, Kind
from sfumato.data.images.resizing import FILTERS
from sfumato.errors import UserError

GENERAL = "[general]"
DATASET = "[[datasets]]"
SUBSET = "[[datasets.subsets]]"


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        convert: turns what stands in the file into a value; raises ValueError or TypeError if it cannot.
        expected: in words, what is accepted.
        tables: where the key may stand.
        kinds: of subsets that it says something about.
        minimum, maximum: limits of a number.
    """

    convert: Callable[[Any], Any]
    expected: str
    tables: tuple[str, ...]
    minimum: float | None = None
    maximum: float | None = None
    kinds: tuple[Kind, ...] = ALL

    def read(self, name: str, value: Any, where: str) -> Any:
        """Return the checked value; `where` names file and table for the message."""
        try:
            converted = self.convert(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: {name} is {value!r}; it must be {self.expected}") from error
        if self.minimum is not None and converted < self.minimum:
            raise UserError(f"{where}: {name} is {value!r}; use {self.minimum} or more")
        if self.maximum is not None and converted > self.maximum:
            raise UserError(f"{where}: {name} is {value!r}; use {self.maximum} or less")
        return converted


def read_table(table: Any, level: str, where: str) -> dict[str, Any]:
    """Return the checked keys of one table, without those that are null in a JSON file.

    Raises:
        UserError: a key is unknown, stands in the wrong table or has a wrong value.
    """
    if not isinstance(table, dict):
        raise UserError(f"{where} is {table!r}; write it as a table")
    values = {name: value for name, value in table.items() if value is not None}
    for name in values:
        if name not in KEYS:
            raise UserError(f"{where}: unknown key {name!r}{_hint(name, level)}")
        if level not in KEYS[name].tables:
            raise UserError(f"{where}: {name} does not belong here; put it into {KEYS[name].tables[-1]}")
    return {name: KEYS[name].read(name, value, where) for name, value in values.items()}


def refuse_other_kinds(values: Mapping[str, Any], kinds: Collection[Kind], where: str) -> None:
    """Raise UserError for a key that says nothing about subsets of any of these kinds."""
    for name in values:
        if not set(kinds) & set(KEYS[name].kinds):
            belongs = " and ".join(DESCRIBED[kind] for kind in KEYS[name].kinds)
            here = " and ".join(DESCRIBED[kind] for kind in kinds)
            raise UserError(f"{where}: {name} belongs to {belongs}; here are {here}")


_OPTIONS = ("prior_loss_weight", "debug_dataset", "max_token_length")
"""What the file cannot say, though it is about data: the whole run has one value."""


def _hint(name: str, level: str) -> str:
    if name in _OPTIONS:
        return f"; give it as --{name}"
    known = [key for key in KEYS if level in KEYS[key].tables]
    close = get_close_matches(name, known, n=1) or get_close_matches(name, KEYS, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _integer(value: Any) -> int:
    if isinstance(value, str) or int(value) != value:
        raise ValueError(value)
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, (str, bool)):
        raise TypeError(value)
    if not math.isfinite(value):
        raise ValueError(value)
    return value if isinstance(value, int) else float(value)


def _switch(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError(value)
    return bool(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _path(value: Any) -> Path:
    if not _text(value) or any(ord(char) < ord(" ") for char in value):  # "C:\\new" holds a line's end
        raise ValueError(value)
    return Path(value)


def _one_of(choices: Collection[str]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(value)
        return value

    return convert


def _resolution(value: Any) -> tuple[int, int]:
    """Read `512`, `[512, 768]` or, as on the command line, `"512,768"`."""
    if isinstance(value, str):
        value = [int(side) for side in value.split(",")]
    sides = [_integer(side) for side in value] if isinstance(value, (list, tuple)) else [_integer(value)]
    width, height = sides * 2 if len(sides) == 1 else sides
    if min(width, height) < 1:
        raise ValueError(value)
    return width, height


def _range(value: Any) -> tuple[float, float]:
    """Read `[2.0, 4.0]` or, as on the command line, `"2.0,4.0"`."""
    low, high = (float(part) for part in (value.split(",") if isinstance(value, str) else value))
    if not 0 < low <= high < math.inf:
        raise ValueError(value)
    return low, high


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


def _count(tables: tuple[str, ...], minimum: int) -> Key:
    return Key(_integer, "a whole number", tables, minimum)


def _flag(tables: tuple[str, ...], kinds: tuple[Kind, ...] = ALL) -> Key:
    return Key(_switch, "true or false", tables, kinds=kinds)


def _words(kinds: tuple[Kind, ...] = ALL) -> Key:
    return Key(_text, "a text in quotes", _EVERYWHERE, kinds=kinds)


def _place(*kinds: Kind) -> Key:
    return Key(
        _path, "a path in quotes, in single ones if it has a backslash", _PER_SUBSET, kinds=kinds or ALL
    )


_PER_DATASET, _EVERYWHERE, _PER_SUBSET = (GENERAL, DATASET), (GENERAL, DATASET, SUBSET), (SUBSET,)
_IN_FOLDERS: tuple[Kind, ...] = ("folder", "mask", "control")
_SHARE = Key(_number, "a number from 0 to 1", _EVERYWHERE, 0, 1)

KEYS = {
    "batch_size": _count(_PER_DATASET, 1),
    "resolution": Key(_resolution, "a size in pixels, as 1024 or [width, height]", _PER_DATASET),
    "skip_image_resolution": Key(_resolution, "a size in pixels, as 768 or [width, height]", _PER_DATASET),
    "enable_bucket": _flag(_PER_DATASET),
    "min_bucket_reso": _count(_PER_DATASET, 1),
    "max_bucket_reso": _count(_PER_DATASET, 1),
    "bucket_reso_steps": _count(_PER_DATASET, 1),
    "bucket_no_upscale": _flag(_PER_DATASET),
    "train_inpainting": _flag(_PER_DATASET),
    "network_multiplier": Key(_number, "a number", _PER_DATASET),
    "validation_seed": Key(_integer, "a whole number", _PER_DATASET),
    "validation_split": Key(_number, "a number from 0 to 1", _PER_DATASET, 0, 1),
    "num_repeats": Key(_integer, "a whole number", _EVERYWHERE),
    "shuffle_caption": _flag(_EVERYWHERE),
    "caption_separator": _words(),
    "keep_tokens": _count(_EVERYWHERE, 0),
    "keep_tokens_separator": _words(),
    "secondary_separator": _words(),
    "enable_wildcard": _flag(_EVERYWHERE),
    "caption_prefix": _words(),
    "caption_suffix": _words(),
    "token_warmup_min": _count(_EVERYWHERE, 0),
    "token_warmup_step": Key(_number, "a number", _EVERYWHERE, 0),
    "caption_dropout_rate": _SHARE,
    "caption_dropout_every_n_epochs": _count(_EVERYWHERE, 0),
    "caption_tag_dropout_rate": _SHARE,
    "color_aug": _flag(_EVERYWHERE),
    "flip_aug": _flag(_EVERYWHERE),
    "random_crop": _flag(_EVERYWHERE),
    "face_crop_aug_range": Key(_range, "two numbers above 0, the smaller first, as [2.0, 4.0]", _EVERYWHERE),
    "resize_interpolation": Key(_one_of(FILTERS), f"one of {', '.join(FILTERS)}", _EVERYWHERE),
    "caption_extension": _words(_IN_FOLDERS),
    "class_tokens": _words(_IN_FOLDERS),
    "cache_info": _flag(_EVERYWHERE, _IN_FOLDERS),
    "custom_attributes": Key(_table, "a table", _EVERYWHERE),
    "image_dir": _place(),
    "is_reg": _flag(_PER_SUBSET, ("folder",)),
    "alpha_mask": _flag(_PER_SUBSET, ("folder", "metadata", "control")),
    "metadata_file": _place("metadata"),
    "mask_dir": _place("mask"),
    "control_dir": _place("mask", "control"),
    "conditioning_data_dir": _place("mask", "control"),
}
"""Every key but `datasets` and `subsets`, which hold tables."""
