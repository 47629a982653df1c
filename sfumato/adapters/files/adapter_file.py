"""Adapter files: one group of tensors per adapted layer, plus metadata with two hashes."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sfumato.adapters.files import interchange
from sfumato.adapters.files.sizes import shapes_of, size_of
from sfumato.adapters.files.soundness import require_sound
from sfumato.adapters.layers import kinds
from sfumato.checkpoints.hashes import adapter_hashes
from sfumato.checkpoints.lazy import AnyTensor, finite
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.pickles import write_pickle
from sfumato.checkpoints.tensors import open_tensors, write_tensors
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.components.recognise import describe
from sfumato.models.registry.other_names import own_names

logger = logging.getLogger(__name__)


def read_adapter(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each layer: `{"lora_unet_img_in": {"alpha": ..., "lora_down.weight": ...}}`.

    An alpha that is missing is what does not scale; one of 0, with which block-weighting tools switch a layer
    off, stays 0.

    Raises:
        UserError: the file is missing, broken, empty or no adapter, or a layer of it is not sound.
    """
    keys = read_keys(path)
    if not is_adapter(keys):
        *titles, last = (kind.title for kind in kinds.in_files())
        raise UserError(f"{path}: {describe(shapes_of(keys))}; give a {', '.join(titles)} or {last}")
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    names = own_names({_bare(key) for key in keys})
    for key, tensor in keys.items():
        name, _, rest = key.partition(".")
        bare = _bare(key)
        layers[name.removesuffix(bare) + names.get(bare, bare)][rest] = tensor
    for tensors in layers.values():
        if "alpha" in tensors:
            tensors["alpha"] = tensors["alpha"].reshape(())
        elif (kind := kinds.loading(tensors)) and kind.files.is_scaled:
            tensors["alpha"] = torch.tensor(float(size_of(shapes_of(tensors)).rank or 1))
    return dict(layers)


def is_adapter(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are the tensors of an adapter of a kind that is known."""
    return kinds.of_file(tensors) is not None


def _bare(key: str) -> str:
    """Return a key's layer without the prefix of the adapter's kind."""
    return key.partition(".")[0].partition("_")[2]


def read_keys(path: Path) -> dict[str, Tensor]:
    """Return an adapter's tensors by our keys, whichever naming the file has.

    Raises:
        UserError: the file is missing or broken, or an adapter that is not sound.
    """
    with open_tensors(path) as reader:
        tensors = interchange.undotted(dict(reader.items()))
    is_foreign = interchange.is_foreign(tensors)
    if is_foreign or is_adapter(tensors):  # a model would take long to look at
        require_sound(path, tensors)
    if not is_foreign:
        return tensors
    own, rest = interchange.to_own(tensors)
    if rest:
        logger.warning("%s: %s not known and left out (%s ...)", path, counted(len(rest), "tensor"), rest[0])
    return own


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
        metadata: without hashes.
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
        write_tensors(path, ready, {**metadata, **adapter_hashes(ready, metadata)})
