"""What writing a transformer of our own has in common, whichever family's it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.tensors import SUFFIXES
from sfumato.errors import UserError
from sfumato.models.components.pipeline_index import copied
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.publishing import Publishing, TrainedParts

FOLDER = "transformer"
"""Where a folder in diffusers' layout keeps the denoiser."""
WEIGHTS = f"{FOLDER}/diffusion_pytorch_model.safetensors"


def write_settings(
    folder: Path, settings: Mapping[str, object], how: Publishing, taken_over: Iterable[str]
) -> None:
    """Write the denoiser's settings in diffusers' layout, and take over folders that the reference has."""
    with atomic_file(folder / FOLDER / "config.json") as file:
        file.write(json.dumps(settings, indent=2).encode())
    if how.reference is not None:
        copied(how.reference, folder, taken_over)


def check_file(path: Path, what: str, how: Publishing) -> None:
    """Raise UserError if a model, `what`, cannot be written as one file of that name."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no name for {what}; end it in .safetensors")
    if how.epoch or how.step:
        raise UserError("--epoch and --global_step are for pickled files of Stable Diffusion; leave them out")


def require_only_denoiser(parts: TrainedParts) -> None:
    """Raise ValueError for parts that a file or folder of the denoiser alone has no place for."""
    if parts.keys() - {DENOISER}:
        raise ValueError(f"{', '.join(parts)}: only the denoiser is written so; write part by part")
