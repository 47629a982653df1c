"""What a single file of Stable Diffusion holds: its parts under original names, and what is unknown."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import TensorReader
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.stable_diffusion import openclip
from sfumato.models.components.stable_diffusion.checkpoint import Checkpoint, PartFormat
from sfumato.models.components.stable_diffusion.predicted import (
    VELOCITY_MARK,
    ZERO_TERMINAL_MARK,
    Told,
    told_by,
)
from sfumato.models.components.unet import unet_names
from sfumato.models.interface.family import Prediction
from sfumato.models.interface.publishing import PartTensors, TrainedParts

_POSITION_IDS = "text_model.embeddings.position_ids"
_POSITIONS = "embeddings.position_embedding.weight"


def file_tensors(
    checkpoint: Checkpoint, parts: TrainedParts, base: TensorReader | None
) -> dict[str, LazyTensor]:
    """Return what a single file holds, made when it is written.

    Args:
        checkpoint: what the model comes from. Its file's prefixes, and what it holds besides, are kept; what
            its folder says of the prediction becomes marks.
        parts: as `publishing.write` has it.
        base: the single file that the model comes from, open, or None.
    """
    tensors: dict[str, LazyTensor] = {}
    older: set[str] = set()
    for part, spec in checkpoint.layout.parts.items():
        state = parts[part] if part in parts else checkpoint.tensors(part)
        # What nothing uses is not trained: it stays as the base's folder makes it.
        is_made = part in parts and spec.leaves_last and checkpoint.is_folder
        own = _published(spec, state) | _unused(spec, checkpoint.tensors(part) if is_made else state, base)
        prefix = spec.prefix_in(base.keys() if base is not None else ())
        tensors |= _prefixed(prefix, own)
        older |= {prefix + text_encoders.bare(name) for name in own}
    if base is None:
        return tensors | _marks(checkpoint)
    known = tensors.keys() | older
    unknown = [name for name in base.keys() if name not in known]  # noqa: SIM118 - a reader is no mapping
    return tensors | {name: base.lazy(name, is_foreign=True) for name in unknown}


def part_tensors(spec: PartFormat, state: PartTensors) -> dict[str, LazyTensor]:
    """Return what a file of one part holds: a UNet's original names, transformers' of a text encoder."""
    if spec.network == "unet":
        return _prefixed(spec.prefixes[0], _published(spec, state))
    return _published(spec, state) if spec.network == "vae" else text_encoders.published_clip(state)


def _published(spec: PartFormat, state: PartTensors) -> dict[str, LazyTensor]:
    """Return a part's tensors under the names of single files, without prefix."""
    if spec.network == "openclip":
        return openclip.published(text_encoders.clip_tensors(state))
    if spec.network == "clip":
        return text_encoders.published_clip(state)
    if spec.network == "vae":
        return autoencoder.published(state)
    return {name: state[ours] for ours, name in unet_names.published_names(state).items()}


def _unused(spec: PartFormat, state: PartTensors, base: TensorReader | None) -> dict[str, LazyTensor]:
    """Return what files hold of a text encoder besides what is used: the base's own where it has it."""
    if spec.network not in ("clip", "openclip"):
        return {}
    tensors, (prefix, *_) = text_encoders.clip_tensors(state), spec.prefixes
    if spec.network == "openclip":
        usual = openclip.unused_layer(tensors) if spec.leaves_last else openclip.logit_scale()
    elif base is None or prefix + _POSITION_IDS in base:
        usual = {_POSITION_IDS: LazyTensor.of(torch.arange(tensors[_POSITIONS].shape[0])[None])}
    else:
        usual = {}
    if base is None:
        return usual
    return {
        name: base.lazy(prefix + name) if prefix + name in base else value for name, value in usual.items()
    }


def _marks(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """Return the tensors, without values, by which a file says what a folder's scheduler says.

    Programs find out from version 2's weights that it predicts velocity, so that its files need not say so.
    """
    told = told_by(checkpoint.path) if checkpoint.is_folder else Told()
    if checkpoint.layout.is_told_by_weights and not told.zero_terminal:
        return {}
    names = [VELOCITY_MARK] * (told.kind is Prediction.VELOCITY) + [ZERO_TERMINAL_MARK] * told.zero_terminal
    return {name: LazyTensor.foreign(torch.empty(0)) for name in names}


def _prefixed(prefix: str, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {prefix + name: value for name, value in tensors.items()}
