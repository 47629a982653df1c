"""Options from a TOML file, read with the tolerance that front-ends need.

They send switches as 0 and 1, whole numbers as floats or text, and 0 or empty text for what was left alone.
"""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.cli.flags import WANTED, Option, read_text
from sfumato.config.secrets import ENVIRONMENT
from sfumato.errors import UserError
from sfumato.installing import command

ZERO_MEANS_UNSET: Mapping[str, str] = {
    "log_with": "no tracker has that name; front-ends send it for an empty choice",
    "sample_sampler": "no sampler has that name; front-ends send it for an empty choice",
    "max_token_length": "no caption has 0 tokens",
    "clip_skip": "0 would take the text encoder's raw word embeddings",
    "min_bucket_reso": "no bucket has sides of 0 pixels",
    "max_bucket_reso": "no bucket has sides of 0 pixels",
    "bucket_reso_steps": "sides cannot be multiples of 0",
    "huber_c": "the loss would be 0 everywhere",
    "vae_batch_size": "a batch of 0 pictures encodes nothing",
    "text_encoder_batch_size": "a batch of 0 captions encodes nothing",
    "t5xxl_max_token_length": "no caption has 0 tokens",
    "max_train_steps": "front-ends send it beside max_train_epochs, which counts instead",
    "max_train_epochs": "a run of 0 epochs trains nothing; max_train_steps counts instead",
    "max_timestep": "no timestep lies below 0",
    "save_every_n_epochs": "there is no 0th part of a run to save after",
    "save_every_n_steps": "there is no 0th part of a run to save after",
    "save_n_epoch_ratio": "there is no 0th part of a run to save after",
    "save_last_n_epochs": "it would delete what has just been saved",
    "save_last_n_steps": "it would delete what has just been saved",
    "save_last_n_epochs_state": "it would delete what has just been saved",
    "save_last_n_steps_state": "it would delete what has just been saved",
    "initial_epoch": "epochs are counted from 1",
}
"""The options whose 0 in a file counts as not given, each with the reason; every other 0 is a value."""


def toml_path(config_file: str) -> Path:
    """Return the path of a configuration file whose suffix may have been left out."""
    return Path(config_file if config_file.endswith(".toml") else f"{config_file}.toml")


def read_options(path: Path, options: Mapping[str, Option]) -> tuple[dict[str, Any], list[str]]:
    """Read a configuration file.

    Returns:
        The values of known options, by name, and the keys that are no option of the script.

    Raises:
        UserError: the file cannot be read, or a value cannot be what its option wants.
    """
    table = flatten(_load(path))
    known = {name: value for name, value in table.items() if name in options}
    values = {
        name: _convert(options[name], value, path)
        for name, value in known.items()
        if not _is_unset(options[name], value)
    }
    return values, [name for name in table if name not in options]


def flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    """Dissolve tables one level deep: their names mean nothing, and a later key replaces an earlier one."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _load(path: Path) -> dict[str, Any]:
    tomllib = _toml_library()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"--config_file {path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"--config_file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--config_file {path}: not UTF-8 text; save it in that encoding") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"--config_file {path} is not TOML: {error}") from None


def _toml_library() -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(f"--config_file needs the library {name}: run {command(name)}") from None


def _is_unset(option: Option, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if value == "" and (option.kind != "str" or option.choices):
        return True
    return value in (0, "0") and option.dest in ZERO_MEANS_UNSET


def _convert(option: Option, value: Any, path: Path) -> Any:
    """Return a TOML value as the option wants it; a list option takes a single value too."""
    try:
        if option.is_list:
            items = value if isinstance(value, list) else [value]
            return tuple(_convert_one(option, item) for item in items)
        return _convert_one(option, value)
    except ValueError as error:
        shown = "the value" if option.dest in ENVIRONMENT else str(error)
        raise UserError(f"{path}: {option.dest}: {shown}") from None


def _convert_one(option: Option, value: Any) -> Any:
    if option.kind == "bool":
        if value not in (0, 1) or isinstance(value, str):
            raise ValueError(f"{value!r} is not {WANTED['bool']}")
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{_shown(value)} is not {WANTED[option.kind]}")
    converted = read_text(option.kind, _as_text(value))
    if option.choices and converted not in option.choices:
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, option.choices))}")
    return converted


def _as_text(value: str | int | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
