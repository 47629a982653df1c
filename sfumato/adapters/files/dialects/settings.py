"""What PEFT and diffusers write beside an adapter's tensors: above all alpha, which their tensors lack.

PEFT has a file `adapter_config.json` in the folder; diffusers writes the same settings, part by part, into
the metadata. Without either, an adapter acts as trained with an alpha that equals its rank.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.config import json_text
from sfumato.errors import UserError

logger = logging.getLogger(__name__)

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
"""What diffusers calls its settings; they are of no use to a file that has been written anew."""
_WRAPPER = "base_model.model."
_LARGEST = 1e30


Pattern = tuple[re.Pattern[str], float]
"""A number for the layers whose paths end so."""


@dataclass(frozen=True)
class Settings:
    """The settings of one part of a model.

    Attributes:
        alphas, ranks: for some layers; the first that fits counts.
        is_rank_stabilised: alpha is divided by the root of the rank (rsLoRA, arXiv:2312.03732).
    """

    usual_alpha: float | None = None
    usual_rank: float | None = None
    alphas: tuple[Pattern, ...] = ()
    ranks: tuple[Pattern, ...] = ()
    is_rank_stabilised: bool = False

    def alpha(self, path: str, rank: int) -> float | None:
        """Return the alpha of a layer that has none among its tensors.

        Args:
            path: the layer's, dotted.
        """
        alpha = _fitting(path, self.alphas, self.usual_alpha)
        return alpha if alpha is None or not self.is_rank_stabilised else alpha * rank**0.5

    def scale_of_whole(self, path: str) -> float:
        """Return what multiplies the change of a layer whose factors have no rank; PEFT scales it, too."""
        alpha, rank = self.alpha(path, 1), _fitting(path, self.ranks, self.usual_rank)
        return 1.0 if alpha is None or rank is None else alpha / rank


@dataclass(frozen=True)
class FileSettings:
    """The settings of a file.

    Attributes:
        parts: by the names of parts in diffusers' files; "" stands for all parts.
    """

    parts: Mapping[str, Settings]

    def of(self, part: str) -> Settings:
        """Return the settings of a part."""
        return self.parts.get(part) or self.parts.get("") or Settings()


def settings_of(path: Path, metadata: Mapping[str, str], is_wrapped: bool) -> FileSettings:
    """Return the settings that come with an adapter.

    Args:
        path: the file, or PEFT's folder.
        is_wrapped: the tensors' keys are those of PEFT's own files.

    Raises:
        UserError: they are not JSON, hold nonsense, or ask for something that no file of tensors can hold.
    """
    config = (path if path.is_dir() else path.parent) / CONFIG
    if is_wrapped and config.is_file():
        values = _parsed(config, _read(config))
        if values.get("layer_replication"):
            raise UserError(f"{config}: layer_replication repeats layers of the model; use another adapter")
        return FileSettings({"": _settings(config, values)})
    if METADATA in metadata:
        parts = _by_part(_parsed(path, metadata[METADATA]))
        return FileSettings({part: _settings(path, values) for part, values in parts.items()})
    if is_wrapped:
        logger.info("%s: no %s beside it, which would tell alpha: a scale of 1 is assumed", path, CONFIG)
    return FileSettings({})


def is_wrapped(key: str) -> bool:
    """Return whether a key is one of PEFT's own files."""
    return key.startswith(_WRAPPER)


def _by_part(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return settings by part, of names such as `transformer.lora_alpha`."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        part, _, setting = name.partition(".")
        found.setdefault(part, {})[setting] = value
    return found


def _settings(path: Path, values: Mapping[str, Any]) -> Settings:
    alpha = next((name for name in ("lora_alpha", "alpha") if name in values), None)
    rank = _number(path, "r", values.get("r"))
    if rank is not None and rank <= 0:
        raise UserError(f"{path}: r is {rank:g}, and a rank is 1 or more; use another file")
    return Settings(
        _number(path, alpha, values[alpha]) if alpha else None,
        rank,
        _patterns(path, "alpha_pattern", values),
        _patterns(path, "rank_pattern", values),
        bool(values.get("use_rslora")),
    )


def _patterns(path: Path, name: str, values: Mapping[str, Any]) -> tuple[Pattern, ...]:
    own = values.get(name) or {}
    if not isinstance(own, dict):
        raise UserError(f"{path}: {name} is {own!r}, no object of numbers; use another file")
    numbers = ((pattern, _number(path, f"{name} of {pattern}", value)) for pattern, value in own.items())
    return tuple((_ending(path, pattern), number) for pattern, number in numbers if number is not None)


def _ending(path: Path, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?:^|\.)(?:{pattern})$")
    except re.error as error:
        raise UserError(f"{path}: {pattern!r} is no pattern of names ({error}); use another file") from None


def _number(path: Path, name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise UserError(f"{path}: {name} is {value!r}, which is no number; use another file")
    return float(value)


def _fitting(path: str, patterns: tuple[Pattern, ...], usual: float | None) -> float | None:
    return next((number for pattern, number in patterns if pattern.search(path)), usual)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; use another file") from None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        values = json_text.parse(text)
    except ValueError as error:
        raise UserError(f"{path}: its settings are no JSON ({error}); use another file") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: its settings are no JSON object; use another file")
    return values
