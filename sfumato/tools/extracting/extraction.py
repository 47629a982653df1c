"""Make a LoRA of what one model has learned beyond another: the low-rank change nearest to their difference.

Both models stay in their files. Each layer's two weights are read, subtracted, decomposed and forgotten, and
the next layer's are read meanwhile, so that the memory needed is that of two layers and of the LoRA.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.adapters.layers.lora import DOWN, PREFIX, UP
from sfumato.adapters.network.selection import Rule, Size
from sfumato.adapters.sd_scripts.blocks import BlockRule
from sfumato.adapters.sd_scripts.network_modules import default_module
from sfumato.checkpoints import modelspec
from sfumato.checkpoints.atomic import require_disk_space
from sfumato.checkpoints.finite import is_finite, largest
from sfumato.checkpoints.read_ahead import ahead
from sfumato.config.run.output.metadata import MetadataConfig
from sfumato.config.run.run import Run
from sfumato.config.tools.extraction import ExtractionConfig, ExtractionDetailConfig
from sfumato.errors import UserError
from sfumato.hub.access import access_for
from sfumato.hub.fetching import located
from sfumato.log import counted, progress
from sfumato.models.components.hub_files import any_model
from sfumato.models.components.stable_diffusion.insistence import InsistenceOptions
from sfumato.models.components.stable_diffusion.predicted import told_by
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.identity import ModelIdentity
from sfumato.models.interface.published import Published, PublishedWeight, weights_of
from sfumato.models.interface.targets import AdapterTarget
from sfumato.models.registry.whole_models import open_model
from sfumato.nn.device import device_named
from sfumato.nn.precision import dtype_named
from sfumato.tools.lowrank import low_rank
from sfumato.tools.outputs import adapter_output

logger = logging.getLogger(__name__)

_NOTHING = 1e-15
"""A change without a larger value is none: its norm could not be computed in float32."""
_VALUES_AT_ONCE = 1 << 20
"""What fits into a processor's cache: rows are subtracted by so many values."""
_WORST = 3
"""Layers that the report names."""


@dataclass(frozen=True)
class Pair:
    """One layer's weight in both models, and the rank of its LoRA."""

    original: PublishedWeight
    tuned: PublishedWeight
    rank: int

    @property
    def target(self) -> AdapterTarget:
        """The layer."""
        return self.original.target

    def change(self, dtype: torch.dtype | None, scratch: Tensor) -> Tensor:
        """Return the difference of the weights as a matrix (out, in ...), float32.

        Args:
            dtype: what both are rounded to before; None leaves them as they are.
            scratch: memory for the result, float32, where it is to be computed; new memory for every layer
                would take longer than the difference.
        """
        old, new = (weight.load().flatten(1) for weight in (self.original, self.tuned))
        change = scratch[: new.numel()].view(new.shape)
        step = max(1, _VALUES_AT_ONCE // new.shape[1])
        for rows in (slice(start, start + step) for start in range(0, new.shape[0], step)):
            first, second = (
                each[rows].to(scratch.device, dtype or each.dtype).float() for each in (old, new)
            )
            torch.sub(second, first, out=change[rows])
        return change


@dataclass(frozen=True)
class Extracted:
    """One layer of the LoRA.

    Attributes:
        norm: Frobenius norm of the change.
        error: of what the LoRA leaves out of it.
        least_error: what any LoRA of its rank leaves out at least; see `LowRank`.
    """

    up: Tensor
    down: Tensor
    norm: float
    error: float
    least_error: float

    def __str__(self) -> str:
        """Say what is missing, for people."""
        rank, error, least = len(self.down), self.error / self.norm, self.least_error / self.norm
        return f"rank {rank} misses {error:.2%} of the change's norm; any must miss {least:.2%}"


def extract(run: Run) -> None:
    """Write the LoRA that the run asks for.

    Raises:
        UserError: a file or option will not do, the models do not fit together or are the same, or the disk
            is full.
    """
    options = run[ExtractionConfig]
    models = [Path(options.model_org), Path(options.model_tuned)]
    target = adapter_output("--save_to", options.save_to, models)
    device = device_named(options.device or "cpu")
    insistence = run.get(InsistenceOptions, InsistenceOptions())
    # Only the model that has learned must predict what the user insists on.
    of_kind = replace(insistence, v_parameterization=None, prediction_type="auto")
    access = access_for(run)
    name, original = open_model(options.model_org, "--model_org", of_kind, access)
    _, tuned = open_model(options.model_tuned, "--model_tuned", insistence, access)
    rule = BlockRule(Size(options.dim), Size(options.conv_dim) if options.conv_dim else None)
    dtype = dtype_named(options.save_precision or "float")
    with original.published(DENOISER) as one, tuned.published(DENOISER) as other:
        first, second = _in_both(one, other)
        pairs = _pairs(weights_of(original, first), weights_of(tuned, second), rule)
        require_disk_space(target.parent, sum(map(_num_values, pairs)) * dtype.itemsize, "the LoRA")
        pairs = _without_equal_texts(pairs, options, device)
        found = _extract(pairs, run, dtype, device)
    if not found:
        raise UserError(f"--model_tuned is {options.model_tuned}: its layers are those of --model_org")
    _report(found)
    place = located(options.model_tuned, "--model_tuned", any_model(), access)
    is_silent = insistence == of_kind and told_by(place).kind is None
    identity = original.identity if is_silent else tuned.identity
    metadata = _metadata(target, options, identity, default_module(name))
    write_adapter(target, _as_file(found), metadata, dtype)
    logger.info("written: %s", target)


def _in_both(one: Published, other: Published) -> tuple[Published, Published]:
    """Return two models without the parts that only one of them holds."""
    shared = one.parts.keys() & other.parts.keys()
    if lone := [part for part in {**one.parts, **other.parts} if part not in shared]:
        logger.info("only one of the models holds %s: left out", ", ".join(lone))
    first, second = (
        replace(opened, parts=_some(opened.parts, shared), modules=_some(opened.modules, shared))
        for opened in (one, other)
    )
    return first, second


def _some(found: Mapping[str, Any], wanted: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name in wanted}


@torch.no_grad()
def extracted(name: str, matrix: Tensor, rank: int, quantile: float, *, is_exact: bool = False) -> Extracted:
    """Return one layer of a LoRA.

    Args:
        name: the layer's, which seeds random directions.
        matrix: (out, in ...), the change.
        quantile: as `lowrank.clamped` has it.
        is_exact: as `lowrank.low_rank` has it.
    """
    near = low_rank(matrix, rank, name, is_exact=is_exact)
    up, down = near.factors(quantile)
    error = near.error if quantile >= 1 else (matrix - up @ down).norm().item()
    return Extracted(up, down, near.norm, error, near.least_error)


def _pairs(originals: Iterator[PublishedWeight], others: Iterator[PublishedWeight], rule: Rule) -> list[Pair]:
    """Return the layers to extract; raise UserError if the models are not of one shape."""
    by_name = {other.target.name: other for other in others}
    pairs = []
    for original in originals:
        size, name = rule.size_of(original.target), original.target.name
        if size is None:
            continue
        if name not in by_name:
            raise UserError(f"--model_tuned lacks {name}; use two models of one architecture")
        other = by_name.pop(name)
        sizes = [_matrix_shape(each.target.module) for each in (original, other)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"--model_tuned: {name} is {sizes[1]}, and {sizes[0]} in --model_org; "
                "use two models of one architecture"
            )
        pairs.append(Pair(original, other, size.rank))
    if rest := [name for name, other in by_name.items() if rule.size_of(other.target)]:
        raise UserError(f"--model_org lacks {rest[0]}; use two models of one architecture")
    return pairs


def _matrix_shape(module: nn.Module) -> tuple[int, int]:
    weight = module.get_parameter("weight")
    return weight.shape[0], math.prod(weight.shape[1:])


def _num_values(pair: Pair) -> int:
    return pair.rank * sum(_matrix_shape(pair.target.module))


def _without_equal_texts(
    pairs: Sequence[Pair], options: ExtractionConfig, device: torch.device
) -> list[Pair]:
    """Return the layers without those of text encoders if none of these differs by more than is asked for."""
    dtype = _rounding(options)
    texts = [pair for pair in pairs if pair.target.part != DENOISER]
    scratch = _scratch(texts, device)
    changes = (largest(pair.change(dtype, scratch)) for pair in texts)
    if any(change > options.min_diff or math.isnan(change) for change in changes):
        return list(pairs)
    if texts:
        logger.info("no weight of a text encoder differs by more than %g: left out", options.min_diff)
    return [pair for pair in pairs if pair.target.part == DENOISER]


def _extract(
    pairs: Sequence[Pair], run: Run, dtype: torch.dtype, device: torch.device
) -> dict[str, Extracted]:
    """Return the layers of the LoRA by their names in files; what is the same in both models is left out."""
    found = {}
    rounding = _rounding(run[ExtractionConfig])
    scratches = cycle([_scratch(pairs, device) for _ in range(2)])  # one is worked on, one is read into
    changes = ahead(pairs, lambda pair: pair.change(rounding, next(scratches)))
    for pair, change in progress(changes, total=len(pairs), unit="layer", title="extracting"):
        name = PREFIX + pair.target.name
        layer = _layer(name, change, pair, run)
        if layer is None:
            continue
        if run.get(ExtractionDetailConfig, ExtractionDetailConfig()).verbose:
            logger.info("%s: %s", name, layer)
        found[name] = _shaped(layer, pair.original.shape, dtype)
    if len(found) < len(pairs):
        number = counted(len(pairs) - len(found), "layer is", "layers are")
        logger.info("%s the same in both models: left out", number)
    return found


def _scratch(pairs: Sequence[Pair], device: torch.device) -> Tensor:
    """Return memory for the largest change."""
    largest = max((math.prod(pair.original.shape) for pair in pairs), default=0)
    return torch.empty(largest, dtype=torch.float32, device=device)


def _layer(name: str, change: Tensor, pair: Pair, run: Run) -> Extracted | None:
    """Return one layer of the LoRA, or None where the models do not differ."""
    options = run[ExtractionConfig]
    most = largest(change)
    if not math.isfinite(most):
        is_original = not is_finite(pair.original.load())
        file = f"--model_org {options.model_org}" if is_original else f"--model_tuned {options.model_tuned}"
        raise UserError(f"{file}: {name} has values that are no numbers (NaN or inf); use another file")
    if most < _NOTHING:
        return None
    is_exact = run.get(ExtractionDetailConfig, ExtractionDetailConfig()).exact
    return extracted(name, change, pair.rank, options.clamp_quantile, is_exact=is_exact)


def _rounding(options: ExtractionConfig) -> torch.dtype | None:
    return dtype_named(options.load_precision) if options.load_precision else None


def _shaped(layer: Extracted, shape: Sequence[int], dtype: torch.dtype) -> Extracted:
    """Return a layer in the shapes that files have: a convolution's down keeps its kernel, and up is 1x1."""
    ones = [1] * (len(shape) - 2)
    return Extracted(
        layer.up.reshape(*layer.up.shape, *ones).to("cpu", dtype),
        layer.down.reshape(-1, *shape[1:]).to("cpu", dtype),
        layer.norm,
        layer.error,
        layer.least_error,
    )


def _report(found: Mapping[str, Extracted]) -> None:
    """Say how near the LoRA comes to the change, over all and where it is worst."""
    whole = math.hypot(*(layer.norm for layer in found.values()))
    error, least = (
        math.hypot(*values) / whole
        for values in zip(*((layer.error, layer.least_error) for layer in found.values()), strict=True)
    )
    logger.info(
        "%s: the LoRA misses %.2f %% of the change's norm; any of these ranks must miss %.2f %%",
        counted(len(found), "layer"),
        100 * error,
        100 * least,
    )
    for name, layer in sorted(found.items(), key=lambda item: -item[1].error / item[1].norm)[:_WORST]:
        logger.info("  most is missing in %s: %s", name, layer)


def _as_file(found: Mapping[str, Extracted]) -> dict[str, Tensor]:
    tensors = {}
    for name, layer in found.items():
        tensors[f"{name}.{DOWN}"] = layer.down
        tensors[f"{name}.{UP}"] = layer.up
        tensors[f"{name}.alpha"] = torch.tensor(float(len(layer.down)))
    return tensors


def _metadata(
    target: Path, options: ExtractionConfig, identity: ModelIdentity, module: str
) -> dict[str, str]:
    conv = options.conv_dim
    arguments = {"conv_dim": str(conv), "conv_alpha": str(float(conv))} if conv else {}
    metadata = {
        "ss_v2": str("_v2" in identity.base_version),
        "ss_base_model_version": identity.base_version,
        "ss_network_module": module,
        "ss_network_dim": str(options.dim),
        "ss_network_alpha": str(float(options.dim)),
        "ss_network_args": json.dumps(arguments),
    }
    if options.no_metadata:
        return metadata
    spec = modelspec.build(identity, MetadataConfig(), kind="lora", name=target.stem, timestamp=time.time())
    return metadata | spec
