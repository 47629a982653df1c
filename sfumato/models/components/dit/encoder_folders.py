"""Text encoders in a folder in diffusers' layout, each with the settings by which transformers builds it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.models.components import text_encoders
from sfumato.models.interface.publishing import PartTensors, Publishing


def weight_files(encoders: Mapping[str, PartTensors], folder: Path, how: Publishing) -> Iterator[WeightFile]:
    """Yield the file of each text encoder.

    Args:
        encoders: tensors by their names in the encoder's state, by the name of its own folder.
    """
    for name, state in encoders.items():
        tensors = text_encoders.stored_once(state)
        yield WeightFile(folder / name / "model.safetensors", tensors, {"format": "pt"}, how.dtype)


def write_settings(models: Mapping[str, nn.Module], folder: Path) -> None:
    """Write the settings of each text encoder, by the name of its own folder."""
    for name, model in models.items():
        built: Any = model
        settings = built.config.to_dict() | {"architectures": [type(model).__name__]}
        with atomic_file(folder / name / "config.json") as file:
            file.write(json.dumps(settings, indent=2, default=str).encode())
