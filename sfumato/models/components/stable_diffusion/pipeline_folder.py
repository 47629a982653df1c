"""A folder that diffusers opens as a pipeline of Stable Diffusion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.checkpoints.weight_file import WeightFile
from sfumato.log import counted
from sfumato.models.components import folder_settings, text_encoders
from sfumato.models.components.pipeline_index import INDEX, copied, other_parts
from sfumato.models.components.stable_diffusion.checkpoint import Checkpoint, PartFormat
from sfumato.models.components.stable_diffusion.predicted import (
    SETTINGS,
    VELOCITY_MARK,
    ZERO_TERMINAL_MARK,
    scheduler_settings,
    told_by,
)
from sfumato.models.components.tokenizers import Tokenizer
from sfumato.models.interface.publishing import PartTensors, Publishing, TrainedParts

logger = logging.getLogger(__name__)

SCHEDULER = "scheduler"

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


def weight_files(
    checkpoint: Checkpoint, parts: TrainedParts, folder: Path, how: Publishing
) -> list[WeightFile]:
    """Return the file of each part's weights; arguments are those of `Publisher.files`."""
    return [
        _weight_file(spec, parts[part] if part in parts else checkpoint.tensors(part), folder, how)
        for part, spec in checkpoint.layout.parts.items()
    ]


def write_settings(
    folder: Path,
    checkpoint: Checkpoint,
    tokenizers: Mapping[str, Callable[[], Tokenizer]],
    predicted: Mapping[str, Any],
    reference: Path | None,
) -> None:
    """Write the parts' settings, scheduler, tokenizers and the index of all.

    Args:
        tokenizers: load those that are not copied, by the name of their folder.
        predicted: what the scheduler's settings say of the model.
        reference: as `Publishing` has it.
    """
    taken = copied(reference, folder, (SCHEDULER, *tokenizers)) if reference is not None else {}
    models = {part: checkpoint.structure(part) for part in checkpoint.layout.parts}
    for part, spec in checkpoint.layout.parts.items():
        settings = _settings(spec, models[part], checkpoint.layout.scale)
        folder_settings.write_settings(folder / spec.folder / "config.json", settings)
    for name in tokenizers.keys() - taken.keys():
        tokenizers[name]().vocabulary.save_pretrained(folder / name)
    _write_scheduler(folder, checkpoint, predicted)
    folder_settings.write_settings(folder / INDEX, _index(checkpoint, models, tokenizers) | taken)
    _report_lost(checkpoint)


def known_folders(checkpoint: Checkpoint, tokenizers: Iterable[str]) -> set[str]:
    """Return the folders that are written here; every other one stays as it is."""
    return {SCHEDULER, *tokenizers, *(spec.folder for spec in checkpoint.layout.parts.values())}


def _index(
    checkpoint: Checkpoint, models: Mapping[str, nn.Module], tokenizers: Iterable[str]
) -> dict[str, Any]:
    """Return which class each folder is for; folders of the base that are not known keep theirs."""
    _, scheduler = checkpoint.layout.pipeline
    index: dict[str, Any] = {**_pipeline(checkpoint), SCHEDULER: ["diffusers", scheduler]}
    for part, spec in checkpoint.layout.parts.items():
        index[spec.folder] = ["transformers" if _is_text(spec) else "diffusers", type(models[part]).__name__]
    index |= {name: ["transformers", "CLIPTokenizer"] for name in tokenizers}
    if "text_encoder_2" not in index:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    known = known_folders(checkpoint, tokenizers)
    return index | (other_parts(checkpoint.path, known) if checkpoint.path is not None else {})


def _pipeline(checkpoint: Checkpoint) -> dict[str, str]:
    name, _ = checkpoint.layout.pipeline
    if not checkpoint.is_inpainting:
        return {"_class_name": name}
    # Before 0.6, a pipeline of this name was another one; diffusers refuses a folder that tells no version.
    return {
        "_class_name": name.replace("Pipeline", "InpaintPipeline"),
        "_diffusers_version": "0.6.0",
    }


def _weight_file(spec: PartFormat, state: PartTensors, folder: Path, how: Publishing) -> WeightFile:
    tensors = text_encoders.published_clip(state) if _is_text(spec) else state
    stem = "model" if _is_text(spec) else "diffusion_pytorch_model"
    if how.as_safetensors:
        name, metadata = f"{stem}.safetensors", {"format": "pt"}
    else:
        name, metadata = f"{'pytorch_' if _is_text(spec) else ''}{stem}.bin", {}
    return WeightFile(folder / spec.folder / name, tensors, metadata, how.dtype)


def _settings(spec: PartFormat, model: nn.Module, scale: float) -> dict[str, Any]:
    if _is_text(spec):
        return folder_settings.text_settings(model)
    own = {"scaling_factor": scale} if spec.network == "vae" else {}
    return folder_settings.network_settings(model, **own)


def _is_text(spec: PartFormat) -> bool:
    return spec.network in ("clip", "openclip")


def _write_scheduler(folder: Path, checkpoint: Checkpoint, predicted: Mapping[str, Any]) -> None:
    """Write the scheduler's settings; of those that were copied, put right what the model contradicts."""
    copied, theirs, ours = scheduler_settings(folder), told_by(folder), told_by(checkpoint.path)
    is_right = ours.kind in (None, theirs.kind) and (theirs.zero_terminal or not ours.zero_terminal)
    if copied and is_right:
        return
    _, name = checkpoint.layout.pipeline
    usual = {"_class_name": name, **_SCHEDULE, **_SCHEDULERS[name]}
    if copied:
        logger.warning("the scheduler to copy says %s, the model %s, which is written", theirs.by, ours.by)
    folder_settings.write_settings(folder / SETTINGS, {**(copied or usual), **predicted})


def _report_lost(checkpoint: Checkpoint) -> None:
    """Say what a single file holds that a folder has no place for."""
    with checkpoint.file() as base:
        names = [] if base is None else base.keys()
    prefixes = tuple(spec.prefix_in(names) for spec in checkpoint.layout.parts.values())
    marks = (VELOCITY_MARK, ZERO_TERMINAL_MARK)
    if lost := [name for name in names if not name.startswith(prefixes) and name not in marks]:
        what = counted(len(lost), "tensor")
        logger.info("%s left out, which a folder has no place for: %s ...", what, lost[0])
