"""Files of new words (textual inversion embeddings), as the programs in use write them.

| form | keys | vectors |
| --- | --- | --- |
| sd-scripts, for one text encoder | `emb_params` | (n, width) |
| sd-scripts and others, for several | `clip_l`, `clip_g` | (n, width) each |
| A1111, pickled | `string_to_param` with one entry | (n, width) |
| diffusers | the word itself | (width,) or (n, width) |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.pickles import write_pickle
from sfumato.checkpoints.tensors import open_tensors, write_tensors
from sfumato.errors import UserError


def read_embedding(path: Path, keys: Collection[str]) -> dict[str, Tensor]:
    """Return a word's vectors, each (n, width) float32, by the key of the text encoder that they are for.

    Args:
        keys: of the text encoders that can be given words; where there is but one, any file with but one
            tensor is for it. Encoders that the file has nothing for are left out.

    Raises:
        UserError: the file is missing, damaged, or holds no vectors for these encoders.
    """
    with open_tensors(path) as reader:
        tensors = dict(reader.items())
    return vectors_of(path, tensors, keys)


def vectors_of(path: Path, tensors: Mapping[str, Tensor], keys: Collection[str]) -> dict[str, Tensor]:
    """Return vectors as `read_embedding` does, of the tensors of a file."""
    found = {key: tensors[key] for key in keys if key in tensors}
    if not found and len(keys) == len(tensors) == 1:
        found = dict(zip(keys, tensors.values(), strict=True))
    if not found:
        held = ", ".join(list(tensors)[:4]) or "nothing"
        raise UserError(f"{path} holds {held}; an embedding for this model holds {' and '.join(keys)}")
    vectors = {key: torch.atleast_2d(tensor).float() for key, tensor in found.items()}
    _require_sound(path, vectors)
    return vectors


def write_embedding(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None
) -> None:
    """Write a word's vectors.

    Args:
        path: ends in .safetensors, or in .pt, .ckpt or .bin for a pickled file without metadata.
        tensors: (n, width) each, by the key of their text encoder.
        dtype: of the file; None is float32.

    Raises:
        UserError: the file cannot be written, or a value is no number.
    """
    ready = {key: tensor.detach().to("cpu", dtype or torch.float32) for key, tensor in tensors.items()}
    if path.suffix.lower() in PICKLE_SUFFIXES:
        write_pickle(path, ready)
    else:
        write_tensors(path, ready, metadata)


def _require_sound(path: Path, vectors: Mapping[str, Tensor]) -> None:
    for key, tensor in vectors.items():
        if tensor.dim() != 2 or not tensor.numel():
            raise UserError(f"{path}: {key} is {tuple(tensor.shape)}; vectors of a word are (n, width)")
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {key} holds values that are no numbers; use another file")
    if len(counts := {len(tensor) for tensor in vectors.values()}) > 1:
        raise UserError(f"{path} has {' and '.join(map(str, sorted(counts)))} vectors; use another file")
