"""The settings that a folder in diffusers' layout keeps beside the weights of each part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.checkpoints.atomic import atomic_file


def text_settings(model: nn.Module) -> dict[str, Any]:
    """Return the settings by which transformers builds a text encoder."""
    config: Any = model.config
    return config.to_dict() | {"architectures": [type(model).__name__]}


def network_settings(model: nn.Module, **own: object) -> dict[str, Any]:
    """Return the settings by which diffusers builds a network of its own; `own` count before the model's."""
    config: Any = model.config
    settings = {key: value for key, value in config.items() if key[0] != "_"}
    return settings | {"_class_name": type(model).__name__} | own


def write_settings(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of settings; it appears under its name when it is complete."""
    text = json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode())
