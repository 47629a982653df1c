"""Write whole checkpoints: one file with the original names, or a folder in diffusers' layout."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.pickles import read_counters, write_pickle
from sfumato.checkpoints.tensors import TensorReader, write_tensors
from sfumato.log import counted
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.stable_diffusion import openclip
from sfumato.models.components.stable_diffusion.checkpoint import Checkpoint, PartFormat
from sfumato.models.components.stable_diffusion.predicted import (
    SETTINGS,
    VELOCITY_MARK,
    ZERO_TERMINAL_MARK,
    Told,
    scheduler_settings,
    told_by,
)
from sfumato.models.components.tokenizers import Tokenizer
from sfumato.models.components.unet import unet_names
from sfumato.models.interface.family import Prediction
from sfumato.models.interface.published import Place, Published
from sfumato.models.interface.rewriting import Rewriting

logger = logging.getLogger(__name__)

Lazy = Mapping[str, LazyTensor]

_POSITION_IDS = "text_model.embeddings.position_ids"
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
_SCHEDULERS: Mapping[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": {"timestep_spacing": "leading"},
}


def save_part(
    spec: PartFormat, model: nn.Module, path: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> None:
    """Write one part as it is published: a UNet as in checkpoints, a text encoder as transformers has it."""
    if spec.network == "unet":
        write_tensors(path, _prefixed(spec.prefix, _published(spec, model)), metadata, dtype)
    elif spec.network == "vae":
        write_tensors(path, _published(spec, model), metadata, dtype)
    else:
        write_tensors(path, text_encoders.published_clip(model), metadata, dtype)


def save_file(path: Path, checkpoint: Checkpoint, models: Mapping[str, nn.Module], how: Rewriting) -> None:
    """Write one file with all parts, safetensors or, by its suffix, pickled.

    Args:
        checkpoint: what the models come from. What its file holds besides is kept as it is, and what its
            folder says of the prediction becomes marks.
        models: each part; one that is not given is loaded from the checkpoint.
    """
    with checkpoint.file() as base:
        tensors = file_tensors(checkpoint, models, how.dtype, base)
        if path.suffix.lower() in PICKLE_SUFFIXES:
            before = read_counters(base.path) if base is not None else {}
            counters = {"epoch": how.epoch, "global_step": how.step}
            counters = {name: before.get(name, 0) + value for name, value in counters.items()}
            write_pickle(path, tensors, counters)
        else:
            write_tensors(path, tensors, how.metadata)


@contextmanager
def published(checkpoint: Checkpoint) -> Iterator[Published]:
    """Open a checkpoint as the single file that it is, or that its folder makes; see `Published`."""
    cpu = torch.device("cpu")
    models = {part: checkpoint.load(part, None, cpu) for part in checkpoint.layout.parts}
    with checkpoint.file() as base:
        tensors = _copies(file_tensors(checkpoint, models, None, base))
        places = {part: _places(spec, models[part]) for part, spec in checkpoint.layout.parts.items()}
        yield Published(tensors, models, places, base.metadata if base is not None else {})


def _places(spec: PartFormat, model: nn.Module) -> dict[str, Place]:
    """Return where a single file holds the weights of a UNet or of a text encoder."""
    state = model.state_dict()
    if spec.network == "unet":
        return {ours: Place(spec.prefix + name) for ours, name in unet_names.published_names(state).items()}
    if spec.network == "vae":
        return {}
    bare = {text_encoders.bare(name): name for name in state}
    if spec.network == "clip":
        prefix = spec.prefix + text_encoders.CLIP_PREFIX
        return {name: Place(prefix + short) for short, name in bare.items()}
    return {
        bare[short]: Place(spec.prefix + place.name, place.start)
        for short, place in openclip.places({short: tuple(state[name].shape) for short, name in bare.items()})
    }


def file_tensors(
    checkpoint: Checkpoint,
    models: Mapping[str, nn.Module],
    dtype: torch.dtype | None,
    base: TensorReader | None,
) -> dict[str, LazyTensor]:
    """Return what a single file holds, made when it is written.

    Args:
        models: as for `save_file`.
        dtype: as `Rewriting` has it.
        base: the single file that the models come from, open, or None.
    """
    tensors: dict[str, LazyTensor] = {}
    for part, spec in checkpoint.layout.parts.items():
        model = models.get(part) or checkpoint.load(part, None, torch.device("cpu"))
        own = _published(spec, model) if part in models else _copies(_published(spec, model))
        own |= _unused(spec, model, base)
        tensors |= _prefixed(spec.prefix, {name: _cast(value, dtype) for name, value in own.items()})
    if base is None:
        return tensors | _marks(checkpoint)
    unknown = [name for name in base.keys() if name not in tensors]  # noqa: SIM118 - a reader is no mapping
    return tensors | {name: base.lazy(name, is_foreign=True) for name in unknown}


def _marks(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """Return the tensors, without values, by which a file says what a folder's scheduler says.

    Programs find out from version 2's weights that it predicts velocity, so that its files need not say so.
    """
    told = told_by(checkpoint.path) if checkpoint.is_folder else Told()
    if checkpoint.layout.is_told_by_weights and not told.zero_terminal:
        return {}
    names = [VELOCITY_MARK] * (told.kind is Prediction.VELOCITY) + [ZERO_TERMINAL_MARK] * told.zero_terminal
    return {name: LazyTensor.foreign(torch.empty(0)) for name in names}


def save_folder(
    folder: Path,
    checkpoint: Checkpoint,
    models: Mapping[str, nn.Module],
    how: Rewriting,
    tokenizers: Mapping[str, Callable[[], Tokenizer]],
    predicted: Mapping[str, Any],
) -> None:
    """Write a folder that diffusers opens as a pipeline.

    Args:
        models: as for `save_file`.
        tokenizers: load those that are not copied, by the name of their folder.
        predicted: what the scheduler's settings say of the model.
    """
    pipeline, scheduler = checkpoint.layout.pipeline
    index: dict[str, Any] = {"_class_name": pipeline, "scheduler": ["diffusers", scheduler]}
    taken = copied(how.reference, folder, ("scheduler", *tokenizers)) if how.reference is not None else {}
    for part, spec in checkpoint.layout.parts.items():
        model = models.get(part) or checkpoint.load(part, None, torch.device("cpu"))
        _save_model(folder / spec.folder, spec, model, how, checkpoint.layout.scale, part not in models)
        library = "diffusers" if spec.network in ("unet", "vae") else "transformers"
        index[spec.folder] = [library, type(model).__name__]
    for name, load in tokenizers.items():
        if name not in taken:
            load().vocabulary.save_pretrained(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    if "text_encoder_2" not in index:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    usual = {"_class_name": scheduler, **_SCHEDULE, **_SCHEDULERS[scheduler]}
    _write_scheduler(folder, checkpoint, usual, predicted)
    _write_json(folder / "model_index.json", index | taken)
    _report_lost(checkpoint)


def _write_scheduler(
    folder: Path, checkpoint: Checkpoint, usual: Mapping[str, Any], predicted: Mapping[str, Any]
) -> None:
    """Write the scheduler's settings; of those that were copied, put right what the model contradicts."""
    copied, theirs, ours = scheduler_settings(folder), told_by(folder), told_by(checkpoint.path)
    is_right = ours.kind in (None, theirs.kind) and (theirs.zero_terminal or not ours.zero_terminal)
    if copied and is_right:
        return
    if copied:
        logger.warning("the scheduler to copy says %s, the model %s, which is written", theirs.by, ours.by)
    _write_json(folder / SETTINGS, {**(copied or usual), **predicted})


def _report_lost(checkpoint: Checkpoint) -> None:
    """Say what a single file holds that a folder has no place for."""
    prefixes = tuple(spec.prefix for spec in checkpoint.layout.parts.values())
    with checkpoint.file() as base:
        names = [] if base is None else base.keys()
    marks = (VELOCITY_MARK, ZERO_TERMINAL_MARK)
    if lost := [name for name in names if not name.startswith(prefixes) and name not in marks]:
        what = counted(len(lost), "tensor")
        logger.info("%s left out, which a folder has no place for: %s ...", what, lost[0])


def copied(reference: Path, folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Copy these folders, where there are any; return what the reference's index says of each."""
    file = reference / "model_index.json"
    if not file.is_file():
        return {}
    index = json.loads(file.read_text(encoding="utf-8"))
    found = {name: index[name] for name in names if name in index and (reference / name).is_dir()}
    for name in found:
        shutil.copytree(reference / name, folder / name, dirs_exist_ok=True)
    return found


def _published(spec: PartFormat, model: nn.Module) -> dict[str, LazyTensor]:
    """Return a part's tensors under the names of single files, without prefix."""
    if spec.network == "openclip":
        return openclip.published(text_encoders.clip_tensors(model))
    if spec.network == "clip":
        tensors = text_encoders.published_clip(model)
    elif spec.network == "vae":
        tensors = autoencoder.published(model.state_dict())
    else:
        state = model.state_dict()
        tensors = {name: state[ours] for ours, name in unet_names.published_names(state).items()}
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


def _unused(spec: PartFormat, model: nn.Module, base: TensorReader | None) -> dict[str, LazyTensor]:
    """Return what files hold of a text encoder besides what is used: the base's own where it has it."""
    if spec.network not in ("clip", "openclip"):
        return {}
    if spec.network == "openclip":
        tensors = text_encoders.clip_tensors(model)
        usual = openclip.unused_layer(tensors) if spec.leaves_last else openclip.logit_scale()
    else:
        length = model.config.max_position_embeddings  # type: ignore[union-attr]
        ids = torch.arange(cast(int, length))[None]
        usual = {_POSITION_IDS: LazyTensor.of(ids)}
        if base is not None and spec.prefix + _POSITION_IDS not in base:
            usual = {}
    if base is None:
        return usual
    return {
        name: base.lazy(spec.prefix + name) if spec.prefix + name in base else value
        for name, value in usual.items()
    }


def _save_model(
    folder: Path, spec: PartFormat, model: nn.Module, how: Rewriting, scale: float, is_copy: bool
) -> None:
    is_text = spec.network in ("clip", "openclip")
    config: Any = model.config
    settings = config.to_dict() if is_text else {k: v for k, v in config.items() if k[0] != "_"}
    settings |= (
        {"architectures": [type(model).__name__]} if is_text else {"_class_name": type(model).__name__}
    )
    if spec.network == "vae":
        settings["scaling_factor"] = scale
    _write_json(folder / "config.json", settings)
    state = text_encoders.published_clip(model) if is_text else model.state_dict()
    tensors = {name: LazyTensor.of(tensor, is_copy=is_copy) for name, tensor in state.items()}
    stem = "model" if is_text else "diffusion_pytorch_model"
    if how.as_safetensors:
        write_tensors(folder / f"{stem}.safetensors", tensors, {"format": "pt"}, how.dtype)
    else:
        write_pickle(folder / f"{'pytorch_' if is_text else ''}{stem}.bin", tensors, dtype=how.dtype)


def _prefixed(prefix: str, tensors: Lazy) -> dict[str, LazyTensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _cast(tensor: LazyTensor, dtype: torch.dtype | None) -> LazyTensor:
    if dtype is None or not tensor.dtype.is_floating_point:
        return tensor
    return replace(tensor, dtype=dtype)  # the writer casts


def _copies(tensors: Lazy) -> dict[str, LazyTensor]:
    """Return tensors as what they are where nobody trained them: values of the file that they come from."""
    return {name: replace(tensor, is_copy=True) for name, tensor in tensors.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode())
