"""What writing a transformer of our own, and the parts around it, has in common, whichever family's it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import SUFFIXES, TensorReader
from sfumato.errors import UserError
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.dit.part_files import PartFiles
from sfumato.models.components.pipeline_index import copied
from sfumato.models.components.recognise import weight_names
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import PartTensors, Publishing, TrainedParts, part_paths

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


@contextmanager
def part_files(base: PartFiles, parts: TrainedParts, path: Path) -> Iterator[dict[Path, PartTensors]]:
    """Yield what the file of each part holds, by its path; `path` is as `part_paths` has it."""
    places = part_paths(path, [part for part in base.specs if part in parts])
    with ExitStack() as opened:
        bases = {part: opened.enter_context(base.opened_if_any(part)) for part in places}
        yield {place: part_tensors(part, parts[part], bases[part]) for part, place in places.items()}


def part_tensors(part: str, state: PartTensors, base: TensorReader | None) -> PartTensors:
    """Return what a file with that part alone holds, with what its base's file holds besides.

    Args:
        state: the part's tensors by their names in its state.
        base: the part's own file, open; the denoiser's as it is, others without prefix.
    """
    if part == DENOISER:
        return {**state, **_remarks(base)}
    return autoencoder.published(state) if part == VAE else _text_tensors(state, base)


def _remarks(base: TensorReader | None) -> PartTensors:
    """Return what the denoiser's file holds for other programs."""
    if base is None:
        return {}
    weights = weight_names(base.keys())
    others = [name for name in base.keys() if name not in weights]  # noqa: SIM118 - a reader is no mapping
    return {name: base.lazy(name, is_foreign=True) for name in others}


def _text_tensors(state: PartTensors, base: TensorReader | None) -> PartTensors:
    """Return all tensors of a text encoder's file, those that it was loaded from replaced.

    What the file has not, a projection that was the identity before it was trained, is added.
    """
    if base is None:
        return text_encoders.published(state)
    names = base.keys()
    found = {text_encoders.name_in_file(name, names) or name: tensor for name, tensor in state.items()}
    held: dict[str, LazyTensor] = {name: base.lazy(name) for name in names}
    return held | found
