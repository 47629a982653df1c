"""Merge adapters into a model, file to file: one tensor in memory at a time, and no model that runs.

A model's file is copied tensor by tensor; those that adapters change are made when their turn comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sfumato.adapters.layers import kinds
from sfumato.adapters.network.placement import owners_of, require_placed
from sfumato.adapters.network.weight_changes import Adapter, changed
from sfumato.adapters.sd_scripts import block_weights
from sfumato.checkpoints.atomic import require_disk_space
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.tensors import SUFFIXES, open_tensors
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.run import Run
from sfumato.config.tools.adapter_merging import (
    AdapterMergingConfig,
    BlockWeightConfig,
    FreeMergeFormatConfig,
    MergeFormatConfig,
    MergeOutput,
    WholeBaseConfig,
)
from sfumato.errors import UserError
from sfumato.hub.access import access_for
from sfumato.hub.fetching import located
from sfumato.log import progress
from sfumato.models.components.hub_files import any_model
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.published import Published, parameters_of
from sfumato.models.interface.publishing import Layout, Publishing
from sfumato.models.interface.targets import AdapterTarget
from sfumato.models.registry.families import family_for
from sfumato.models.registry.whole_models import open_base
from sfumato.nn.device import device_named
from sfumato.nn.precision import dtype_named, is_storage_only
from sfumato.tools.merging.adapter_sums import write_sum
from sfumato.tools.merging.joined_words import tell_left_out
from sfumato.tools.merging.merged_metadata import model_record
from sfumato.tools.outputs import require_other

logger = logging.getLogger(__name__)


@runtime_checkable
class NamesModels(Protocol):
    """A section of options that names models to merge into."""

    def outputs(self, save_to: str | None) -> tuple[MergeOutput, ...]:
        """Return the files to write; none where adapters are merged with each other."""
        ...


@dataclass(frozen=True)
class Formats:
    """Dtypes of a merge: in which weights are added up, and in which they are written."""

    merge: torch.dtype
    save: torch.dtype

    @property
    def result(self) -> torch.dtype:
        """What a changed weight is made in: rounded to `merge` first where that is coarser than float32."""
        return self.save if self.merge == torch.float32 else self.merge


@dataclass
class Changes:
    """Which tensors of a model are changed, and what was found on the way.

    Attributes:
        layers: the layer of each tensor and what it is there (`weight`, `bias` ...), by the names of its part
            and of the tensor in its state.
        used: names of the adapters' layers that fit.
        owners: what adapter files call the parts of the model.
    """

    layers: dict[tuple[str, str], tuple[AdapterTarget, str]] = field(default_factory=dict)
    used: set[tuple[Path, str]] = field(default_factory=set)
    owners: set[str] = field(default_factory=set)


def merge_adapters(run: Run) -> None:
    """Write what the run asks for: models with adapters merged into them, or one adapter.

    Raises:
        UserError: a file or option will not do, or the disk is full.
    """
    options = run[AdapterMergingConfig]
    if not options.models:
        raise UserError("--models is not given; name the adapters to merge")
    models = next(section for section in run if isinstance(section, NamesModels))
    outputs = models.outputs(options.save_to)
    formats, adapters = _formats(run), read_adapters(options, run.get(BlockWeightConfig, BlockWeightConfig()))
    _check_naming(run, adapters)
    if not outputs:
        write_sum(run, adapters, formats.merge, formats.save)
        return
    for name in ("concat", "shuffle"):
        if getattr(options, name):
            raise UserError(f"--{name} is about merging adapters with each other; leave it out for a model")
    tell_left_out(adapters)
    _merge_into_models(run, outputs, adapters, formats)


def read_adapters(options: AdapterMergingConfig, blocks: BlockWeightConfig) -> list[Adapter]:
    """Open the adapter files with their strengths, layer by layer."""
    paths, lists = options.models or (), blocks.lists()
    block_weights.check_counts(len(paths), len(lists))
    padded = lists or ((),) * len(paths)
    adapters = [
        Adapter.read(Path(path), _strength(ratio, weights))
        for path, ratio, weights in zip(paths, options.ratios or (), padded, strict=True)
    ]
    for adapter in adapters if lists else ():
        if all(block_weights.block_of(name) is None for name in adapter.layers):
            logger.warning("--lbws has no effect on %s: no layer lies in a block of a U-Net", adapter.path)
    return adapters


def _strength(ratio: float, weights: Sequence[float]) -> Callable[[str], float]:
    return lambda layer: ratio * block_weights.weight_of(layer, weights)


def _formats(run: Run) -> Formats:
    section = FreeMergeFormatConfig if FreeMergeFormatConfig in run else MergeFormatConfig
    options = run[section]
    merge = dtype_named(options.precision, "--precision")
    if is_storage_only(merge):
        raise UserError(f"--precision is {options.precision}, which cannot be computed in; use bf16 or float")
    return Formats(
        merge, dtype_named(options.save_precision, "--save_precision") if options.save_precision else merge
    )


def _merge_into_models(
    run: Run, outputs: Sequence[MergeOutput], adapters: Sequence[Adapter], formats: Formats
) -> None:
    family = _base(run)
    device = device_named(_working_device(run), "--working_device")
    _check_outputs(run, outputs, adapters)
    plans = {}
    for output in outputs:  # everything is checked before anything is written
        with family.published(output.part or DENOISER) as base:
            plans[output] = _planned(family, base, adapters)
            size = family.written_bytes(base.parts, _publishing(output, formats))
            require_disk_space(Path(output.path).parent, size, "the merged model")
    _require_placed(adapters, list(plans.values()), run.get(PartialUseConfig, PartialUseConfig()))
    for output in outputs:
        with family.published(output.part or DENOISER) as base:
            _write(run, family, output, base, plans[output], adapters, formats, device)
        logger.info("written: %s", output.path)


def _base(run: Run) -> Family:
    """Return the family that the models belong to, bound to them."""
    if WholeBaseConfig not in run:
        return family_for(run)
    whole = run[WholeBaseConfig]
    path = located(whole.sd_model, "--sd_model", any_model(), access_for(run))
    if path is None:
        raise ValueError("no model to merge into")
    return open_base(path, "--sd_model", version=2 if whole.v2 else None)


def _working_device(run: Run) -> str:
    return str(run.values().get("working_device", "cpu"))


def _check_naming(run: Run, adapters: Sequence[Adapter]) -> None:
    """Raise UserError if the user insists on diffusers' naming and a file is in ours."""
    if run.values().get("diffusers"):
        for adapter in adapters:
            with open_tensors(adapter.path) as reader:
                names = reader.keys()
            if any(name.startswith(kinds.prefixes()) for name in names):
                raise UserError(f"--diffusers is given, but {adapter.path} has other names; leave it out")


def _check_outputs(run: Run, outputs: Sequence[MergeOutput], adapters: Sequence[Adapter]) -> None:
    """Raise UserError if a name will not do, or a file would be written over another that is needed."""
    sources = [adapter.path for adapter in adapters]
    sources += [Path(str(run.values()[output.option])) for output in outputs]
    for number, output in enumerate(outputs):
        path = Path(output.path)
        suffixes = SUFFIXES if output.part else (*SUFFIXES, *PICKLE_SUFFIXES)
        if path.suffix.lower() not in suffixes:
            raise UserError(f"{path} is no name for a merged model; end it in .safetensors")
        require_other("the file to write", path, sources)
        if path.resolve() in [Path(other.path).resolve() for other in outputs[:number]]:
            raise UserError(f"{path} is named for two merged models; give each a name of its own")


def _planned(family: Family, base: Published, adapters: Sequence[Adapter]) -> Changes:
    """Return which tensors change; raise UserError if a layer's shapes do not fit."""
    changes = Changes()
    for target, parameter, tensor in parameters_of(family, base):
        names = [(adapter, name) for adapter in adapters if (name := adapter.name_for(target))]
        changes.owners |= owners_of([target])
        changes.used |= {(adapter.path, name) for adapter, name in names}
        changing = [adapter for adapter, _ in names if adapter.changes(target, parameter)]
        if changing:
            changes.layers[target.part, tensor] = target, parameter
        for adapter in changing:
            adapter.layer(target)  # complains of shapes that do not fit
    return changes


def _require_placed(adapters: Sequence[Adapter], plans: Sequence[Changes], options: PartialUseConfig) -> None:
    used = set().union(*(plan.used for plan in plans))
    owners = set().union(*(plan.owners for plan in plans))
    for adapter in adapters:
        placed = {name for path, name in used if path == adapter.path}
        require_placed(adapter.path, adapter.layers, placed, owners, is_partial=options.allow_partial)


def _write(
    run: Run,
    family: Family,
    output: MergeOutput,
    base: Published,
    plan: Changes,
    adapters: Sequence[Adapter],
    formats: Formats,
    device: torch.device,
) -> None:
    path, source = Path(output.path), str(run.values()[output.option])
    how, metadata = _publishing(output, formats), {}
    if output.part in ("", DENOISER) and not run[AdapterMergingConfig].no_metadata:
        paths = [adapter.path for adapter in adapters]
        metadata = model_record(family, path, Path(source), base.metadata, paths)
    with progress(total=len(plan.layers), unit="tensor", title="merging") as bar:
        parts = {
            part: {
                name: _merged(tensor, source, *plan.layers[part, name], adapters, formats, device, bar.update)
                if (part, name) in plan.layers
                else tensor
                for name, tensor in tensors.items()
            }
            for part, tensors in base.parts.items()
        }
        family.write(parts, path, replace(how, metadata=metadata))


def _publishing(output: MergeOutput, formats: Formats) -> Publishing:
    is_whole = output.part in ("", DENOISER)
    layout = Layout.WHOLE_FILE if is_whole else Layout.PART_FILES
    return Publishing(layout, formats.save, counts_on=False)


def _merged(
    tensor: LazyTensor,
    source: str,
    target: AdapterTarget,
    parameter: str,
    adapters: Sequence[Adapter],
    formats: Formats,
    device: torch.device,
    count: Callable[[], object],
) -> LazyTensor:
    """Return a layer's parameter with the adapters' changes, which are made when it is written."""

    def load() -> Tensor:
        own = tensor.load()
        count()
        return changed(own, target, adapters, formats.result, device, parameter)

    return LazyTensor(formats.result, tensor.shape, load, sources={source: tensor})
