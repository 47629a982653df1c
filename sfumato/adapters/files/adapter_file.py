"""Adapter files: one group of tensors per adapted layer, plus metadata with two hashes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sfumato.adapters.files.dialects import settings
from sfumato.adapters.files.dialects.reading import read_content
from sfumato.checkpoints.hashes import adapter_hashes
from sfumato.checkpoints.lazy import AnyTensor, finite
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.pickles import write_pickle
from sfumato.checkpoints.tensors import write_tensors
from sfumato.log import counted

logger = logging.getLogger(__name__)


def read_adapter(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each layer: `{"lora_unet_img_in": {"alpha": ..., "lora_down.weight": ...}}`.

    An alpha that is missing is what does not scale; one of 0, with which block-weighting tools switch a layer
    off, stays 0. Layers and tensors have our names, whichever program wrote the file.

    Raises:
        UserError: as `dialects.reading.read_content` says.
    """
    content = read_content(path)
    if content.embeddings:
        number = counted(len(content.embeddings), "embedding")
        logger.warning("%s: %s of new words come with it, and are left out here", path, number)
    return content.layers


def write_adapter(
    path: Path,
    tensors: Mapping[str, AnyTensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write an adapter file; the hashes are of the tensors as written.

    Args:
        path: ends in .safetensors, or in .pt or .ckpt for a pickled file without metadata.
        tensors: by their keys in the file.
        metadata: without hashes; what diffusers says there of alpha is left out, for the tensors say it.
        dtype: what every tensor is cast to, alpha included, as other tools expect; None keeps each its own.

    Raises:
        UserError: as `write_tensors` says.
    """
    ready = {
        key: tensor if tensor.is_floating_point() else tensor.to(dtype or tensor.dtype)
        for key, tensor in finite(path, tensors, dtype)
    }
    if path.suffix.lower() in PICKLE_SUFFIXES:
        write_pickle(path, ready)
    else:
        kept = {key: text for key, text in metadata.items() if key != settings.METADATA}
        described = {**kept, **adapter_hashes(ready, kept)}
        write_tensors(path, ready, described, takes_any=True)  # each was looked at above
