"""Merge whole checkpoints: the weighted sum of each tensor, one after the other.

The first checkpoint decides which tensors there are. Where a later one lacks a tensor, the first one's counts
in its place, so that the weights of a sum stay the same for all tensors.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import SUFFIXES, TensorReader, write_tensors
from sfumato.config.run.run import Run
from sfumato.config.tools.merging import MergingConfig
from sfumato.errors import UserError
from sfumato.log import counted, progress
from sfumato.models.components.model_files import open_weights
from sfumato.models.components.recognise import weight_names
from sfumato.models.components.stable_diffusion.predicted import FIELD, told_by_file
from sfumato.nn.device import device_named
from sfumato.nn.precision import dtype_named
from sfumato.tools.outputs import require_writable

logger = logging.getLogger(__name__)

_OLDER_TEXT_NAMES = re.compile(r"^(cond_stage_model\.transformer\.)(embeddings|encoder|final_layer_norm)\.")
_OTHER_PARTS = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.")


@dataclass(frozen=True)
class MergeSource:
    """One checkpoint of a merge.

    Attributes:
        names: its own name of each tensor, by the name that all share: older files leave out a level of the
            text encoder's.
        weights: those of the names that are of the model's own tensors; others are not added up.
        ratio: how much it counts.
    """

    file: TensorReader
    names: Mapping[str, str]
    weights: Set[str]
    ratio: float

    def info(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Return shape and dtype of a tensor."""
        own = self.names[name]
        return self.file.shape(own), self.file.dtype(own)


def merge_models(run: Run) -> None:
    """Write the merged checkpoint that the run asks for.

    Raises:
        UserError: a file or option will not do, or the disk is full.
    """
    options = run[MergingConfig]
    paths, output = _paths(options), _output(options)
    ratios = options.ratios or (1 / len(paths),) * len(paths)
    device, precision = device_named(options.device), dtype_named(options.precision)
    with ExitStack() as files:
        sources = [
            _source(files.enter_context(open_weights(path)), ratio)
            for path, ratio in zip(paths, ratios, strict=True)
        ]
        _check(sources)
        _report_skipped(sources, options.show_skipped)
        tensors = {
            own: _merged(sources, name, options.unet_only, device, precision)
            if name in sources[0].weights
            else sources[0].file.lazy(own, is_foreign=True)
            for name, own in sources[0].names.items()
        }
        with progress(total=len(tensors), unit="tensor", title="merging") as bar:
            counted = {name: _counted(tensor, bar.update) for name, tensor in tensors.items()}
            write_tensors(output, counted, _prediction(sources), dtype_named(options.saving_precision))
    logger.info("written: %s", output)


def weighted_sum(tensors: Iterable[Tensor], ratios: Iterable[float]) -> Tensor:
    """Return the sum of tensors of one shape, each times its ratio; one is held at a time."""
    pairs = zip(tensors, ratios, strict=True)
    first, share = next(pairs)
    total = first * share
    del first
    for tensor, ratio in pairs:
        total += tensor * ratio
    return total


def _paths(options: MergingConfig) -> list[Path]:
    if not options.models:
        raise UserError("--models is not given; name the checkpoints to merge")
    paths = [Path(text) for text in options.models]
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"--models names {path}; only .safetensors files are merged, so convert it first")
    return paths


def _output(options: MergingConfig) -> Path:
    if not options.output:
        raise UserError("--output is not given; name the file to write")
    path = Path(options.output)
    path = path if path.suffix.lower() in SUFFIXES else path.with_name(f"{path.name}.safetensors")
    require_writable("--output", path)
    return path


def _source(file: TensorReader, ratio: float) -> MergeSource:
    names = {_OLDER_TEXT_NAMES.sub(r"\1text_model.\2.", name): name for name in file.keys()}  # noqa: SIM118
    own = weight_names(file.keys())
    return MergeSource(file, names, {name for name, in_file in names.items() if in_file in own}, ratio)


def _check(sources: Sequence[MergeSource]) -> None:
    """Raise UserError if a checkpoint has nothing in common with the first, or other sizes."""
    first = sources[0]
    for other in sources[1:]:
        shared = first.weights & other.weights
        if not shared:
            raise UserError(
                f"--models: {other.file.path} shares no tensor with {first.file.path}; use another"
            )
        for name in sorted(shared):
            ours, theirs = first.info(name)[0], other.info(name)[0]
            if ours != theirs:
                raise UserError(
                    f"--models: {name} is {theirs} in {other.file.path} and {ours} in {first.file.path}; "
                    "merge models of one architecture"
                )


def _report_skipped(sources: Sequence[MergeSource], is_listed: bool) -> None:
    first = sources[0]
    for other in sources[1:]:
        for names, what in (
            (other.names.keys() - first.names.keys(), "left out, for the first model has no such"),
            (first.names.keys() - other.names.keys(), "missing, taken from the first model"),
        ):
            if names:
                hint = "" if is_listed else " (--show_skipped lists them)"
                logger.info("%s: %s %s%s", other.file.path.name, counted(len(names), "tensor"), what, hint)
            for name in sorted(names) if is_listed else ():
                logger.info("  %s", name)


def _prediction(sources: Sequence[MergeSource]) -> dict[str, str]:
    """Return what the first model's metadata say that it predicts; warn of a model that says otherwise."""
    told = [told_by_file(source.file.keys(), source.file.metadata) for source in sources]
    for source, own in zip(sources, told, strict=True):
        if own.kind not in (None, told[0].kind):
            name = source.file.path.name
            logger.warning("%s says (%s) that it predicts something else than the first model", name, own.by)
    value = sources[0].file.metadata.get(FIELD)
    return {FIELD: value} if value else {}


def _merged(
    sources: Sequence[MergeSource],
    name: str,
    is_unet_only: bool,
    device: torch.device,
    precision: torch.dtype,
) -> LazyTensor:
    """Return a tensor of the result, computed when it is written."""
    first = sources[0]
    shape, dtype = first.info(name)
    if not dtype.is_floating_point or (is_unet_only and name.startswith(_OTHER_PARTS)):
        return first.file.lazy(first.names[name])
    owners = [source if name in source.names else first for source in sources]

    def load() -> Tensor:
        tensors = (owner.file.get(owner.names[name]).to(device, precision) for owner in owners)
        return weighted_sum(tensors, [source.ratio for source in sources])

    names = {str(owner.file.path): owner.file.lazy(owner.names[name]) for owner in owners}
    return LazyTensor(precision, shape, load, sources=names)


def _counted(tensor: LazyTensor, count: Callable[[], object]) -> LazyTensor:
    """Return a tensor that reports when it has been made."""

    def load() -> Tensor:
        value = tensor.load()
        count()
        return value

    return replace(tensor, load=load)
