"""Merge adapters of any kinds and ranks into one LoRA of a given rank.

The changes of each layer are added up, and the nearest matrix of that rank is kept: ratios count as given,
and there are no cross terms. LoRAs are decomposed through their halves, so that no change is ever made whole.

A rotation (OFT) changes a weight by how it turns it: it needs the weight, and turns what the adapters before
it have made of it, as when it is merged into the model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.adapters.files.shapes import ToldShape, told_shape
from sfumato.adapters.layers.lora import DOWN, PREFIX, UP
from sfumato.adapters.network.weight_changes import Adapter, changed
from sfumato.config.run.run import Run
from sfumato.config.tools.adapter_merging import (
    AdapterMergingConfig,
    BlockWeightConfig,
    MergeFormatConfig,
    NewRankConfig,
)
from sfumato.errors import UserError
from sfumato.hub.access import HubAccess, access_for
from sfumato.log import progress
from sfumato.models.components.stable_diffusion.insistence import InsistenceOptions
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.published import PublishedWeight, weights_of
from sfumato.models.interface.targets import AdapterTarget
from sfumato.models.registry.whole_models import open_model
from sfumato.nn.device import device_named
from sfumato.nn.precision import dtype_named
from sfumato.tools import lowrank
from sfumato.tools.merging.adapter_merging import read_adapters
from sfumato.tools.merging.joined_words import joined_words
from sfumato.tools.merging.merged_metadata import adapter_record
from sfumato.tools.outputs import adapter_output

logger = logging.getLogger(__name__)

Weights = Mapping[str, PublishedWeight]
"""The weights of the model that the adapters are for, by the names of layers; empty if none is named."""


def svd_merge(run: Run) -> None:
    """Write the merged LoRA that the run asks for.

    Raises:
        UserError: a file or option will not do, or the disk is full.
    """
    options, size, formats = run[AdapterMergingConfig], run[NewRankConfig], run[MergeFormatConfig]
    if not options.models:
        raise UserError("--models is not given; name the adapters to merge")
    sources = [Path(name) for name in options.models]
    path = adapter_output("--save_to", options.save_to, sources)
    device, precision = device_named(size.device or "cpu", "--device"), dtype_named(formats.precision)
    adapters = read_adapters(options, run[BlockWeightConfig])
    names = dict.fromkeys(_layer_name(name) for adapter in adapters for name in adapter.layers)
    tensors: dict[str, Tensor] = {}
    with _weights(size.base_model, access_for(run)) as weights:
        targets = [target_of(name, adapters, weights) for name in names]
        with progress(total=len(targets), unit="layer", title="merging") as bar:
            for target in targets:
                tensors |= merged_layer(target, adapters, size, precision, device, weights)
                bar.update()
    saved = formats.save_precision
    record = adapter_record(path, sources, tensors, has_spec=not options.no_metadata)
    words = joined_words(adapters)
    write_adapter(path, {**tensors, **words}, record, dtype_named(saved) if saved else precision)
    logger.info("written: %s", path)


@contextmanager
def _weights(base_model: str | None, access: HubAccess) -> Iterator[Weights]:
    if base_model is None:
        yield {}
        return
    _, family = open_model(base_model, "--base_model", InsistenceOptions(), access)
    with family.published(DENOISER) as opened:
        yield {weight.target.name: weight for weight in weights_of(family, opened)}


def _layer_name(name: str) -> str:
    """Return a layer's name without the prefix of a kind of adapters."""
    return name.partition("_")[2]


def target_of(name: str, adapters: Sequence[Adapter], weights: Weights) -> AdapterTarget:
    """Return a layer: the model's, or one without numbers whose sizes are those that the adapters speak of.

    Args:
        name: without the prefix of a kind of adapters.

    Raises:
        UserError: the adapters do not tell, or contradict each other or the model.
    """
    told = [
        (adapter, full, told_shape(full, adapter.layers[full]))
        for adapter in adapters
        for full in adapter.layers
        if _layer_name(full) == name
    ]
    for adapter, full, _ in told:
        if adapter.changes_bias(full):
            raise UserError(
                f"--models: {adapter.path}: {full} changes a bias, which no LoRA can; merge it into a model"
            )
    if name in weights:
        found = weights[name].target
        rows, *rest = weights[name].shape
        _check_sizes(name, (rows, math.prod(rest)), "--base_model", told)
        return found
    for adapter, full, shape in told:
        if shape is None:
            remedy = "merge it into its model" if weights else "name its model with --base_model"
            raise UserError(
                f"--models: {adapter.path}: {full} changes what its tensors alone do not tell; {remedy}"
            )
    known = [(adapter, shape) for adapter, _, shape in told if shape and shape.kernel is not None]
    if not known:
        raise UserError(
            f"--models: {told[0][0].path} does not tell whether {told[0][1]} is a convolution; "
            "name its model with --base_model"
        )
    adapter, shape = known[0]
    _check_sizes(name, (shape.rows, shape.columns), str(adapter.path), told)
    return AdapterTarget(name, shape.module(), "")


def _check_sizes(
    name: str, size: tuple[int, int], owner: str, told: Sequence[tuple[Adapter, str, ToldShape | None]]
) -> None:
    for adapter, _, shape in told:
        if shape and (shape.rows, shape.columns) != size:
            raise UserError(
                f"--models: {adapter.path}: {name} is {shape.rows}x{shape.columns}, and {size[0]}x{size[1]} "
                f"in {owner}; use adapters for one model"
            )


def merged_layer(
    target: AdapterTarget,
    adapters: Sequence[Adapter],
    size: NewRankConfig,
    dtype: torch.dtype,
    device: torch.device,
    weights: Weights,
) -> dict[str, Tensor]:
    """Return the tensors of one merged layer."""
    shape = target.module.get_parameter("weight").shape
    is_wide = len(shape) == 4 and tuple(shape[2:]) != (1, 1)
    rank = (size.new_conv_rank or size.new_rank) if is_wide else size.new_rank
    found = _decomposed(target, adapters, rank, dtype, device, weights).truncated(rank)
    rank, kernel = len(found.values), shape[2:]
    name = PREFIX + target.name
    return {
        f"{name}.{UP}": (found.left * found.values).reshape(shape[0], rank, *[1] * len(kernel)).cpu(),
        f"{name}.{DOWN}": found.right.reshape(rank, *shape[1:]).cpu(),
        f"{name}.alpha": torch.tensor(0.0 if _is_off(target, adapters) else float(rank)),
    }


def _is_off(target: AdapterTarget, adapters: Sequence[Adapter]) -> bool:
    """Return whether all adapters of a layer switch it off, with an alpha of 0."""
    return all(adapter.is_off(name) for adapter in adapters if (name := adapter.name_for(target)))


def _decomposed(
    target: AdapterTarget,
    adapters: Sequence[Adapter],
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
    weights: Weights,
) -> lowrank.LowRank:
    owners = [(adapter, name) for adapter in adapters if (name := adapter.name_for(target))]
    factors = [adapter.factors(target) for adapter, _ in owners]
    pairs = [pair for pair in factors if pair]
    if len(pairs) == len(owners):
        ups, downs = zip(*pairs, strict=True)
        scaled = [
            up.to(device, dtype) * adapter.strength(name)
            for up, (adapter, name) in zip(ups, owners, strict=True)
        ]
        halves = torch.cat(scaled, 1).float(), torch.cat([down.to(device, dtype) for down in downs]).float()
        return _of_product(*halves)
    shape = target.module.get_parameter("weight").shape
    is_used = any(adapter.needs_weight(name) for adapter, name in owners)
    weight = weights[target.name].load().float() if is_used else torch.zeros(shape)
    change = changed(weight, target, adapters, torch.float32, device).sub_(weight.to(device))
    return lowrank.low_rank(change.flatten(1).to(dtype).float(), rank, target.name)


def _of_product(up: Tensor, down: Tensor) -> lowrank.LowRank:
    """Return the decomposition of `up @ down`, through the smaller way."""
    if up.shape[1] >= min(up.shape[0], down.shape[1]):
        return lowrank.decomposed(up @ down)
    return lowrank.decomposed_product(up, down)
