"""Merge LoRAs with each other by adding up their halves, or by putting their ranks side by side.

With a ratio r and a scale alpha / rank, both halves of a LoRA are multiplied by r * sqrt(alpha / alpha_1),
where alpha_1 is the first one's: it counts r^2, with r's sign, and halves that are added up leave cross terms
`up_1 down_2`. Side by side there are no cross terms, but ranks add up while alpha stays the first one's: a
LoRA counts r^2 times its share of all ranks. That is what sd-scripts does, so that its ratios keep their
meaning; `svd_merging.py` counts ratios as they are.

Where a file switches a layer off, with an alpha of 0, the layer comes from the other files alone, and if no
other has it, it is written switched off.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.adapters.layers.lora import DOWN, UP
from sfumato.adapters.network.weight_changes import Adapter
from sfumato.config.run.run import Run
from sfumato.config.tools.adapter_merging import AdapterMergingConfig, WholeBaseConfig
from sfumato.errors import UserError
from sfumato.tools.merging.joined_words import joined_words
from sfumato.tools.merging.merged_metadata import adapter_record
from sfumato.tools.outputs import adapter_output

logger = logging.getLogger(__name__)


def write_sum(run: Run, adapters: Sequence[Adapter], merge: torch.dtype, save: torch.dtype) -> None:
    """Write the merged LoRA.

    Args:
        merge, save: formats to compute in and to write.

    Raises:
        UserError: a file holds no LoRA, or shapes differ where numbers are to be added.
    """
    options = run[AdapterMergingConfig]
    sources = [adapter.path for adapter in adapters]
    path = adapter_output("--save_to", options.save_to, sources)
    for adapter in adapters:
        _check_is_lora(adapter)
    tensors = summed(adapters, merge, is_concat=options.concat, is_shuffled=options.shuffle)
    if options.concat:
        _report_strengths(adapters)
    record = adapter_record(
        path,
        sources,
        tensors,
        family=run.family,
        is_v2=run.get(WholeBaseConfig, WholeBaseConfig()).v2,
        has_spec=not options.no_metadata,
    )
    write_adapter(path, {**tensors, **joined_words(adapters)}, record, save)
    logger.info("written: %s", path)


def summed(
    adapters: Sequence[Adapter], dtype: torch.dtype, *, is_concat: bool = False, is_shuffled: bool = False
) -> dict[str, Tensor]:
    """Return the tensors of the merged LoRA, computed in `dtype`."""
    names = dict.fromkeys(name for adapter in adapters for name in adapter.layers)
    merged: dict[str, Tensor] = {}
    for name in names:
        owners = _owners(adapters, name)
        alpha = owners[0].layers[name]["alpha"]
        pairs = [_scaled(owner, name, float(alpha), dtype) for owner in owners]
        if not is_concat:
            _check_shapes(name, owners, pairs)
        down, up = _joined(pairs) if is_concat else _added(pairs)
        if is_shuffled:
            order = torch.randperm(down.shape[0])
            down, up = down[order], up[:, order]
        merged |= {f"{name}.{DOWN}": down, f"{name}.{UP}": up, f"{name}.alpha": alpha.to(dtype)}
    return merged


def _owners(adapters: Sequence[Adapter], name: str) -> list[Adapter]:
    """Return the adapters that have a layer; those that switch it off only if all do."""
    owners = [adapter for adapter in adapters if name in adapter.layers]
    return [owner for owner in owners if not owner.is_off(name)] or owners


def _check_is_lora(adapter: Adapter) -> None:
    for name, tensors in adapter.layers.items():
        if tensors.keys() != {DOWN, UP, "alpha"}:
            found = ", ".join(sorted(tensors))
            raise UserError(
                f"--models: {adapter.path}: {name} holds {found}, which is no plain LoRA; take svd_merge_lora"
            )


def _report_strengths(adapters: Sequence[Adapter]) -> None:
    """Say how strongly each LoRA acts in one that has the ranks of all side by side."""
    totals: Counter[str] = Counter()
    ranks = [
        {name: own[DOWN].shape[0] for name, own in a.layers.items() if not a.is_off(name)} for a in adapters
    ]
    for own in ranks:
        totals.update(own)
    for adapter, own in zip(adapters, ranks, strict=True):
        counts = [adapter.strength(n) * abs(adapter.strength(n)) * own[n] / totals[n] for n in own] or [0.0]
        low, high = f"{min(counts):.3g}", f"{max(counts):.3g}"
        logger.info("%s acts at %s: its ratio squared, shared by ranks", adapter.path, _range(low, high))


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _scaled(adapter: Adapter, name: str, base_alpha: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return down and up, multiplied alike; the sign of their product goes to down."""
    tensors: Mapping[str, Tensor] = adapter.layers[name]
    share = float(tensors["alpha"]) / base_alpha if base_alpha else 1.0  # all are off, and stay so
    scale = adapter.strength(name) * math.copysign(math.sqrt(abs(share)), share)
    return tensors[DOWN].to(dtype) * scale, tensors[UP].to(dtype) * abs(scale)


def _check_shapes(name: str, owners: Sequence[Adapter], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for owner, (down, up) in zip(owners, pairs, strict=True):
        if (down.shape, up.shape) != (pairs[0][0].shape, pairs[0][1].shape):
            raise UserError(
                f"--models: {name} is of rank {down.shape[0]} in {owner.path} and {pairs[0][0].shape[0]} in "
                f"{owners[0].path}; add --concat, or take svd_merge_lora"
            )


def _added(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    downs, ups = zip(*pairs, strict=True)
    return torch.stack(downs).sum(0), torch.stack(ups).sum(0)


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    downs, ups = zip(*pairs, strict=True)
    return torch.cat(downs), torch.cat(ups, 1)
