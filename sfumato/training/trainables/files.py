"""What saved files have in common, whatever was trained: their dtype and what they say."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from sfumato.checkpoints import modelspec
from sfumato.checkpoints.finite import largest
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.output.metadata import MetadataConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.models.interface.family import Family
from sfumato.nn.precision import dtype_named

logger = logging.getLogger(__name__)


def save_dtype(run: Run) -> torch.dtype | None:
    """Return the dtype of saved files; None keeps what was trained."""
    name = run[SavingConfig].save_precision
    return dtype_named(name, "save_precision") if name else None


def holding_dtype(run: Run, tensors: Iterable[tuple[str, Tensor]]) -> torch.dtype | None:
    """Return the dtype of a file that is saved now: `save_dtype`, unless a value is too large for it.

    What was trained is not lost for a format that cannot hold it: then it is saved as it was trained.
    """
    dtype = save_dtype(run)
    most = math.inf if dtype is None else torch.finfo(dtype).max
    for name, tensor in tensors:
        if tensor.is_floating_point() and torch.finfo(tensor.dtype).max > most and largest(tensor) > most:
            logger.warning(
                "--save_precision %s cannot hold %s, which reaches %.4g: saved as it was trained",
                run[SavingConfig].save_precision,
                name,
                largest(tensor),
            )
            return None
    return dtype


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
