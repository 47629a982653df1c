"""Files of new words (textual inversion embeddings), as the programs in use write them.

| form | keys | vectors |
| --- | --- | --- |
| sd-scripts, for one text encoder | `emb_params` | (n, width) |
| sd-scripts and others, for several | `clip_l`, `clip_g` | (n, width) each |
| sd-scripts, for each layer | `IN01` ... `OUT11` | (n, width) each |
| A1111, pickled | `string_to_param` with one entry | (n, width) |
| diffusers | the word itself | (width,) or (n, width) |
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.pickles import write_pickle
from sfumato.checkpoints.tensors import open_tensors, write_tensors
from sfumato.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedding:
    """A word's vectors as a file has them.

    Attributes:
        vectors: (n, width) float32, by the key of the text encoder that they are for; in a file of layers,
            those of one layer after the other.
        num_vectors: of each text encoder, or layer.
        is_layered: whether each layer of the denoiser has its own.
    """

    vectors: Mapping[str, Tensor]
    num_vectors: int
    is_layered: bool = False


def read_embedding(path: Path, keys: Collection[str], layers: Sequence[str] = ()) -> Embedding:
    """Read a word's vectors.

    Args:
        keys: of the text encoders that can be given words; where there is but one, any file with but one
            tensor is for it. Encoders that the file has nothing for are left out.
        layers: of the denoiser, that files may have vectors for.

    Raises:
        UserError: the file is missing, damaged, or holds no vectors for these encoders.
    """
    with open_tensors(path) as reader:
        tensors = dict(reader.items())
    return embedding_of(path, tensors, keys, layers)


def embedding_of(
    path: Path, tensors: Mapping[str, Tensor], keys: Collection[str], layers: Sequence[str] = ()
) -> Embedding:
    """Return what `read_embedding` does, of the tensors of a file."""
    if layers and tensors.keys() >= {*layers}:
        found = _sound(path, {layer: tensors[layer] for layer in layers})
        [key] = keys
        return Embedding({key: torch.cat([*found.values()])}, len(found[layers[0]]), is_layered=True)
    found = {key: tensors[key] for key in keys if key in tensors}
    if not found and len(keys) == len(tensors) == 1:
        found = dict(zip(keys, tensors.values(), strict=True))
    if not found:
        held = ", ".join(list(tensors)[:4]) or "nothing"
        raise UserError(f"{path} holds {held}; an embedding for this model holds {' and '.join(keys)}")
    vectors = _sound(path, found)
    if len(found) < len(tensors):
        rest = ", ".join(key for key in tensors if key not in found)
        logger.warning("%s: no text encoder of this model takes its %s, left out", path, rest)
    return Embedding(vectors, len(next(iter(vectors.values()))))


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


def _sound(path: Path, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return vectors as (n, width) float32; raise UserError unless they are so, and each key has as many."""
    vectors = {key: torch.atleast_2d(tensor).float() for key, tensor in found.items()}
    for key, tensor in vectors.items():
        if tensor.dim() != 2 or not tensor.numel():
            raise UserError(f"{path}: {key} is {tuple(tensor.shape)}; vectors of a word are (n, width)")
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {key} holds values that are no numbers; use another file")
    if len(counts := {len(tensor) for tensor in vectors.values()}) > 1:
        raise UserError(f"{path} has {' and '.join(map(str, sorted(counts)))} vectors; use another file")
    return vectors
