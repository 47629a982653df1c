"""Merge adapters of any kinds and ranks into one LoRA of a given rank.

The changes of each layer are added up, and the nearest matrix of that rank is kept: ratios count as given,
and there are no cross terms. LoRAs are decomposed through their halves, so that no change is ever made whole.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.changes import Adapter
from sfumato.adapters.files import write_adapter
from sfumato.config.adapter_merging import (
    AdapterMergingConfig,
    BlockWeightConfig,
    MergeFormatConfig,
    NewRankConfig,
)
from sfumato.config.run import Run
from sfumato.errors import UserError
from sfumato.log import progress
from sfumato.models.family import AdapterTarget
from sfumato.nn.device import device_named
from sfumato.nn.precision import dtype_named
from sfumato.tools import lowrank
from sfumato.tools.adapter_merging import read_adapters
from sfumato.tools.merge_record import adapter_record

logger = logging.getLogger(__name__)

_DOWN, _UP = "lora_down.weight", "lora_up.weight"


def svd_merge(run: Run) -> None:
    """Write the merged LoRA that the run asks for.

    Raises:
        UserError: a file or option will not do, or the disk is full.
    """
    options, size, formats = run[AdapterMergingConfig], run[NewRankConfig], run[MergeFormatConfig]
    if not options.models:
        raise UserError("--models is not given; name the adapters to merge")
    if not options.save_to:
        raise UserError("--save_to is not given; name the file to write")
    device, precision = device_named(size.device or "cpu", "--device"), dtype_named(formats.precision)
    adapters = read_adapters(options, run[BlockWeightConfig])
    names = dict.fromkeys(name for adapter in adapters for name in adapter.layers)
    targets = {name: target_of(name, adapters) for name in names}
    tensors: dict[str, Tensor] = {}
    with progress(total=len(names), unit="layer", title="merging") as bar:
        for target in targets.values():
            tensors |= merged_layer(target, adapters, size, precision, device)
            bar.update()
    path, saved = Path(options.save_to), formats.save_precision
    sources = [adapter.path for adapter in adapters]
    record = adapter_record(path, sources, tensors, has_spec=not options.no_metadata)
    write_adapter(path, tensors, record, dtype_named(saved) if saved else precision)
    logger.info("written: %s", path)


def target_of(name: str, adapters: Sequence[Adapter]) -> AdapterTarget:
    """Return a layer without numbers whose sizes are those that the adapters speak of.

    Raises:
        UserError: the adapters do not tell: a rotation has no size of its own.
    """
    owner = next(adapter for adapter in adapters if name in adapter.layers)
    tensors = owner.layers[name]
    if _DOWN in tensors and _UP in tensors:
        rows, columns = tensors[_UP].shape[0], tensors[_DOWN].shape[1]
        kernel = tuple(tensors[_DOWN].shape[2:])
    elif "hada_w1_a" in tensors and "hada_t1" not in tensors:
        rows, columns, kernel = tensors["hada_w1_a"].shape[0], tensors["hada_w1_b"].shape[1], ()
    else:
        raise UserError(
            f"--models: {owner.path}: {name} is no LoRA and does not tell its layer's shape; "
            "merge it into a model"
        )
    with torch.device("meta"):
        module = nn.Conv2d(columns, rows, kernel) if kernel else nn.Linear(columns, rows)  # type: ignore[arg-type]
    return AdapterTarget(name.partition("_")[2], module, "")


def merged_layer(
    target: AdapterTarget,
    adapters: Sequence[Adapter],
    size: NewRankConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the tensors of one merged layer."""
    shape = target.module.get_parameter("weight").shape
    is_wide = len(shape) == 4 and tuple(shape[2:]) != (1, 1)
    rank = (size.new_conv_rank or size.new_rank) if is_wide else size.new_rank
    found = _decomposed(target, adapters, rank, dtype, device).truncated(rank)
    rank, kernel = len(found.values), shape[2:]
    name = f"lora_{target.name}"
    return {
        f"{name}.{_UP}": (found.left * found.values).reshape(shape[0], rank, *[1] * len(kernel)).cpu(),
        f"{name}.{_DOWN}": found.right.reshape(rank, *shape[1:]).cpu(),
        f"{name}.alpha": torch.tensor(float(rank)),
    }


def _decomposed(
    target: AdapterTarget,
    adapters: Sequence[Adapter],
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> lowrank.LowRank:
    owners = [(adapter, name) for adapter in adapters if (name := adapter.name_for(target))]
    if all(
        {_DOWN, _UP} <= adapter.layers[name].keys() and "lora_mid.weight" not in adapter.layers[name]
        for adapter, name in owners
    ):
        halves = [_halves(adapter, name, dtype, device) for adapter, name in owners]
        downs, ups = zip(*halves, strict=True)
        return _of_product(torch.cat(ups, 1).float(), torch.cat(downs).float())
    total = sum(_change(adapter, name, target).to(device, dtype).float() for adapter, name in owners)
    assert isinstance(total, Tensor)
    matrix = total.flatten(1)
    return lowrank.low_rank(matrix, rank, target.name)


def _of_product(up: Tensor, down: Tensor) -> lowrank.LowRank:
    """Return the decomposition of `up @ down`, through the smaller way."""
    if up.shape[1] >= min(up.shape[0], down.shape[1]):
        return lowrank.decomposed(up @ down)
    return lowrank.decomposed_product(up, down)


def _halves(adapter: Adapter, name: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return down (r, n), and up (m, r) times the scale."""
    tensors = adapter.layers[name]
    down, up = (tensors[half].to(device, dtype).flatten(1) for half in (_DOWN, _UP))
    return down, up * (adapter.strength(name) * float(tensors["alpha"]) / down.shape[0])


@torch.no_grad()
def _change(adapter: Adapter, name: str, target: AdapterTarget) -> Tensor:
    return adapter.layer(target).delta() * adapter.strength(name)
