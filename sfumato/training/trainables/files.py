"""What saved files have in common, whatever was trained: their number format and what they say."""

from __future__ import annotations

import time

import torch

from sfumato.checkpoints import modelspec
from sfumato.config.images import ImageConfig
from sfumato.config.metadata import MetadataConfig
from sfumato.config.model import ModelConfig
from sfumato.config.noise import NoiseConfig
from sfumato.config.run import Run
from sfumato.config.saving import SavingConfig
from sfumato.models.family import Family
from sfumato.nn.precision import dtype_named


def save_dtype(run: Run) -> torch.dtype | None:
    """Return the dtype of saved files; None keeps what was trained."""
    name = run[SavingConfig].save_precision
    return dtype_named(name, "save_precision") if name else None


def description(run: Run, family: Family, kind: modelspec.Kind) -> dict[str, str]:
    """Return the fields of modelspec for a file that is written now."""
    return modelspec.build(
        family.identity,
        run[MetadataConfig],
        kind=kind,
        name=run[SavingConfig].output_name,
        timestamp=time.time(),
        resolution=run[ImageConfig].size,
        timestep_range=(run[NoiseConfig].min_timestep, run[NoiseConfig].max_timestep),
        encoder_layer=run[ModelConfig].clip_skip,
    )
