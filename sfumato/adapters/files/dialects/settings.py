"""What PEFT and diffusers write beside an adapter's tensors: above all alpha, which their tensors lack.

PEFT has a file `adapter_config.json` in the folder; diffusers writes the same settings, part by part, into
the metadata. Without either, an adapter acts as trained with an alpha that equals its rank.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.errors import UserError

logger = logging.getLogger(__name__)

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
"""What diffusers calls its settings; they are of no use to a file that has been written anew."""
_WRAPPER = "base_model.model."


@dataclass(frozen=True)
class Settings:
    """The settings of one part of a model; no settings if empty."""

    values: Mapping[str, Any] = field(default_factory=dict)

    def alpha(self, path: str, rank: int) -> float | None:
        """Return the alpha of a layer that has none among its tensors.

        Args:
            path: the layer's, dotted.
        """
        alpha = self._value(path, "alpha_pattern", "lora_alpha", "alpha")
        if alpha is None:
            return None
        return float(alpha) * (rank**0.5 if self.values.get("use_rslora") else 1.0)

    def scale_of_whole(self, path: str) -> float:
        """Return what multiplies the change of a layer whose factors have no rank; PEFT scales it, too."""
        alpha, rank = self.alpha(path, 1), self._value(path, "rank_pattern", "r")
        return 1.0 if alpha is None or not rank else alpha / rank

    def _value(self, path: str, pattern: str, *names: str) -> Any:
        """Return the first setting of some, unless the layer has one of its own."""
        own = (self.values.get(pattern) or {}).items()
        fitting = (value for part, value in own if re.search(rf"(?:^|\.)(?:{part})$", path))
        return next(fitting, next((self.values[name] for name in names if name in self.values), None))


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
        UserError: they are not JSON, or ask for something that no file of tensors can hold.
    """
    config = (path if path.is_dir() else path.parent) / CONFIG
    if is_wrapped and config.is_file():
        values = _parsed(config, config.read_text(encoding="utf-8"))
        if values.get("layer_replication"):
            raise UserError(f"{config}: layer_replication repeats layers of the model; use another adapter")
        return FileSettings({"": Settings(values)})
    if METADATA in metadata:
        return FileSettings(_by_part(_parsed(path, metadata[METADATA])))
    if is_wrapped:
        logger.info("%s: no %s beside it, which would tell alpha: a scale of 1 is assumed", path, CONFIG)
    return FileSettings({})


def is_wrapped(key: str) -> bool:
    """Return whether a key is one of PEFT's own files."""
    return key.startswith(_WRAPPER)


def _by_part(values: Mapping[str, Any]) -> dict[str, Settings]:
    """Return settings by part, of names such as `transformer.lora_alpha`."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        part, _, setting = name.partition(".")
        found.setdefault(part, {})[setting] = value
    return {part: Settings(own) for part, own in found.items()}


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: its settings are no JSON ({error}); use another file") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: its settings are no JSON object; use another file")
    return values
