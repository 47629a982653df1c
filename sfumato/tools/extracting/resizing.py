"""Bring a LoRA to another rank: the closest change of that rank, layer by layer.

The singular values of `up @ down` come from two thin QR decompositions, so that the product, which is as
large as the model's own weight, is never made.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.adapters.files.dialects.reading import read_content
from sfumato.adapters.layers.lora import DOWN, UP
from sfumato.checkpoints.tensors import open_tensors
from sfumato.config import json_text
from sfumato.config.run.run import Run
from sfumato.config.tools.resizing import ResizingConfig
from sfumato.errors import UserError
from sfumato.log import progress
from sfumato.nn.device import device_named
from sfumato.nn.precision import dtype_named
from sfumato.tools.lowrank import LowRank, decomposed_product, exact, seeded
from sfumato.tools.outputs import adapter_output

logger = logging.getLogger(__name__)

_LORA = {DOWN, UP, "alpha"}
_NOTHING = 1e-6
"""A layer whose largest singular value is no larger than this changes nothing."""


@dataclass(frozen=True)
class Resized:
    """One layer at its new rank.

    Attributes:
        values: singular values of its product before, descending.
        old_rank: before.
    """

    up: Tensor
    down: Tensor
    alpha: float
    values: Tensor
    old_rank: int

    @property
    def rank(self) -> int:
        """The new rank."""
        return self.down.shape[0]

    @property
    def kept(self) -> float:
        """How much of the change's norm is left, at most 1."""
        squares = exact(self.values).square()
        whole = squares.sum().item()
        return (squares[: self.rank].sum().item() / whole) ** 0.5 if whole else 1.0

    def __str__(self) -> str:
        """Say what is left, for people."""
        last = self.values[min(self.rank, len(self.values)) - 1].item()
        ratio = f"{self.values[0].item() / last:.1f}" if last else "-"
        total = self.values.sum().item()
        of_sum = self.values[: self.rank].sum().item() / total if total else 1.0
        return (
            f"rank {self.old_rank} -> {self.rank}, keeps {self.kept:.1%} of the norm, "
            f"{of_sum:.1%} of the singular values' sum, largest to smallest {ratio}"
        )


def resize(run: Run) -> None:
    """Write the LoRA that the run asks for.

    Raises:
        UserError: a file or option will not do, or the disk is full.
    """
    options = run[ResizingConfig]
    source, target = _paths(options)
    content = read_content(source)
    layers = content.layers
    for name, tensors in layers.items():
        _check(source, name, tensors)
    device = device_named(options.device or "cpu")
    found = {}
    with progress(total=len(layers), unit="layer", title="resizing") as bar:
        for name, tensors in layers.items():
            found[name] = resized(name, tensors, options, device)
            if options.verbose:
                logger.info("%s: %s", name, found[name])
            bar.update()
    metadata = _metadata(source, options, layers, found)
    tensors = {**_as_file(found, layers), **content.embeddings}
    write_adapter(target, tensors, metadata, dtype_named(options.save_precision or "float"))
    shares = torch.tensor([layer.kept for layer in found.values()])
    logger.info(
        "kept of the norm: %.1f %% on average, %.1f %% at least", 100 * shares.mean(), 100 * shares.min()
    )
    logger.info("written: %s", target)


@torch.no_grad()
def resized(
    name: str, tensors: Mapping[str, Tensor], options: ResizingConfig, device: torch.device
) -> Resized:
    """Return one layer of a LoRA at its new rank, with the same ratio of alpha and rank.

    Args:
        name: the layer's, which seeds what a rank higher than before is filled up with.
        tensors: `lora_up.weight` (out, r, ...), `lora_down.weight` (r, in, ...) and `alpha`.
    """
    up, down = tensors[UP], tensors[DOWN]
    whole = decomposed_product(*(each.to(device, torch.float32).flatten(1) for each in (up, down)))
    limit = (down.dim() == 4 and options.new_conv_rank) or options.new_rank
    smallest = min(whole.left.shape[0], whole.right.shape[1])
    rank = min(_rank(whole.values, limit, options), smallest)
    new_up, new_down = _factors(whole, rank, name)
    old_rank = down.shape[0]
    return Resized(
        new_up.reshape(-1, rank, *up.shape[2:]).cpu(),
        new_down.reshape(rank, *down.shape[1:]).cpu(),
        tensors["alpha"].item() / old_rank * rank,
        whole.values.cpu(),
        old_rank,
    )


def _rank(values: Tensor, limit: int, options: ResizingConfig) -> int:
    """Return the rank that singular values ask for, up to a limit; without a method, the limit.

    As in sd-scripts, a method keeps one more than its rule says, and at least two.
    """
    if values[0] <= _NOTHING:
        return 1
    if options.dynamic_method is None or options.dynamic_param is None:
        return limit
    if options.dynamic_method == "sv_ratio":
        count = int((values > values[0] / options.dynamic_param).sum())
    elif options.dynamic_method == "sv_fro":
        count = _count_for_share(values.square(), options.dynamic_param**2)
    else:
        count = _count_for_share(values, options.dynamic_param)
    return min(max(count, 1) + 1, len(values), limit)


def _count_for_share(parts: Tensor, share: float) -> int:
    """Return how many parts, from the first, it takes to have that share of their sum."""
    sums = parts.cumsum(0) / parts.sum()
    return int(torch.searchsorted(sums, share)) + 1


def _factors(whole: LowRank, rank: int, seed: str) -> tuple[Tensor, Tensor]:
    """Return factors of that rank; above the change's own they get more directions, for training to use."""
    up, down = whole.truncated(rank).factors()
    if rank <= len(down):
        return up, down
    missing = rank - len(down)
    more = torch.randn(missing, down.shape[1], generator=seeded(seed)).to(down)
    orthogonal = torch.linalg.qr(torch.cat([down, more]).T)[0].T[-missing:]
    return torch.cat([up, up.new_zeros(up.shape[0], missing)], dim=1), torch.cat([down, orthogonal])


def _paths(options: ResizingConfig) -> tuple[Path, Path]:
    if not options.model:
        raise UserError("--model is not given; name the LoRA to resize")
    source = Path(options.model)
    return source, adapter_output("--save_to", options.save_to, [source])


def _check(path: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if a layer is no plain LoRA."""
    if tensors.keys() != _LORA:
        strange, missing = tensors.keys() - _LORA, _LORA - tensors.keys()
        what = f"holds {name}.{min(strange)}" if strange else f"lacks {name}.{min(missing)}"
        raise UserError(f"--model is {path}, which {what}; only plain LoRA layers can be resized")


def _as_file(found: Mapping[str, Resized], layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    tensors = {}
    for name in layers:
        layer = found[name]
        tensors[f"{name}.{DOWN}"] = layer.down
        tensors[f"{name}.{UP}"] = layer.up
        tensors[f"{name}.alpha"] = torch.tensor(layer.alpha)
    return tensors


def _metadata(
    path: Path,
    options: ResizingConfig,
    layers: Mapping[str, Mapping[str, Tensor]],
    found: Mapping[str, Resized],
) -> dict[str, str]:
    """Return what the file says of itself, with what changed: ranks, alphas, and a comment on it."""
    with open_tensors(path) as file:
        metadata = {key: text for key, text in file.metadata.items() if not key.startswith("sshs_")}
    old = max(layer.old_rank for layer in found.values())
    if options.dynamic_method:
        comment = f"Dynamic resize with {options.dynamic_method}: {options.dynamic_param} from {old}"
    else:
        conv = f" (conv: {options.new_conv_rank})" if options.new_conv_rank else ""
        comment = f"dimension is resized from {old} to {options.new_rank}{conv}"
    before = metadata.get("ss_training_comment", "")
    metadata["ss_training_comment"] = f"{comment}; {before}"
    flat = [layer for layer in found.values() if layer.down.dim() == 2] or list(found.values())
    metadata["ss_network_dim"], metadata["ss_network_alpha"] = _sizes(flat)
    wide = [layer for layer in found.values() if layer.down.dim() == 4 and layer.down.shape[2] > 1]
    arguments = _arguments(metadata.get("ss_network_args", ""))
    if wide and "conv_dim" in arguments:
        arguments["conv_dim"], arguments["conv_alpha"] = _sizes(wide)
        metadata["ss_network_args"] = json.dumps(arguments)
    return metadata


def _sizes(layers: Sequence[Resized]) -> tuple[str, str]:
    """Return rank and alpha of layers, each `Dynamic` where they differ."""
    ranks, alphas = {str(layer.rank) for layer in layers}, {str(layer.alpha) for layer in layers}
    first, second = ("Dynamic" if len(values) > 1 else min(values) for values in (ranks, alphas))
    return first, second


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = json_text.parse(text)
    except ValueError:  # other programs write other things
        return {}
    return found if isinstance(found, dict) else {}
