"""U-Nets block by block: ranks, alphas and learning rates of a model whose blocks are counted in one list.

The list runs through the model: the way down, the middle, the way up.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from sfumato.adapters.network.selection import Size
from sfumato.adapters.sd_scripts import argument_values
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.layers import BlockList
from sfumato.models.interface.targets import AdapterTarget

logger = logging.getLogger(__name__)

SIZE_ARGUMENTS = (
    "conv_dim",
    "conv_alpha",
    "block_dims",
    "block_alphas",
    "conv_block_dims",
    "conv_block_alphas",
)
RATE_ARGUMENTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold")

_PRESETS: Mapping[str, Callable[[float], float]] = {
    "sine": lambda place: math.sin(math.pi / 2 * place),
    "cosine": lambda place: math.sin(math.pi / 2 * (1 - place)),
    "linear": lambda place: place,
    "reverse_linear": lambda place: 1 - place,
    "zeros": lambda place: 0.0,
}
"""Rates along one way through the model; the place is 0 at its first block and 1 at its last."""


@dataclass(frozen=True)
class BlockRule:
    """Sizes of layers by block and by kernel; a `Rule`.

    Without sizes for wide kernels (above 1x1) only the layers of transformers are adapted. With them, all
    layers of residual blocks and resamplers are: their Linear and 1x1 layers at the common size.

    Attributes:
        common: of text encoders, and of the denoiser's Linear and 1x1 layers.
        wide: of wide kernels, or None.
        by_block: as `common`, for each of the denoiser's blocks; empty if `common` is for all.
        wide_by_block: as `wide`, for each block.
    """

    common: Size
    wide: Size | None = None
    by_block: tuple[Size, ...] = ()
    wide_by_block: tuple[Size, ...] = ()

    def size_of(self, target: AdapterTarget) -> Size | None:
        """Return the size for one layer; see `Rule`."""
        if target.part != DENOISER:
            return self.common
        is_asked_for = target.block is not None and bool(self.wide or self.wide_by_block)
        if not target.is_default and not is_asked_for:
            return None
        is_wide = isinstance(target.module, nn.Conv2d) and target.module.kernel_size != (1, 1)
        size = self.wide if is_wide else self.common
        sizes = self.wide_by_block if is_wide else self.by_block
        if sizes and target.block is not None:
            size = sizes[target.block[1]]
        return size if size is not None and size.rank else None

    def check(self, targets: Iterable[AdapterTarget]) -> None:
        """Raise UserError if the model has more blocks than there are sizes for."""
        known = len(self.by_block or self.wide_by_block)
        last = max(
            (target.block[1] for target in targets if target.part == DENOISER and target.block), default=0
        )
        if known and last >= known:
            raise UserError(
                f"--network_args block_dims: this model has block {last}, the list ends at {known - 1}"
            )


def read_rule(given: Mapping[str, str], common: Size, blocks: BlockList, rates: Sequence[float]) -> BlockRule:
    """Return the rule that arguments ask for.

    Args:
        given: arguments, checked to be known.
        common: rank and alpha of what no argument speaks of.
        blocks: of the model.
        rates: of each block, or none; a block of rate 0 is left alone.

    Raises:
        UserError: a value is wrong.
    """
    dims = _per_block(given, "block_dims", argument_values.to_ranks, blocks)
    wide_dims = _per_block(given, "conv_block_dims", argument_values.to_ranks, blocks)
    rank = argument_values.read(given, "conv_dim", argument_values.to_rank, "a rank, 0 or more")
    alpha = argument_values.read(given, "conv_alpha", argument_values.to_ratio, "a number")
    wide = Size(rank, 1.0 if alpha is None else alpha) if rank else None
    if dims is None and wide_dims is None and not rates:
        _warn_of_rest(given, ("block_alphas", "conv_block_alphas"), "block_dims or weights of rates")
        if wide is None:
            _warn_of_rest(given, ("conv_alpha",), "conv_dim")
        return BlockRule(common, wide)
    alphas = _per_block(given, "block_alphas", argument_values.to_numbers, blocks)
    by_block = _sizes(dims, alphas, common, blocks, rates)
    if wide is None and wide_dims is None:
        _warn_of_rest(given, ("conv_alpha", "conv_block_alphas"), "conv_dim or conv_block_dims")
        return BlockRule(common, by_block=by_block)
    wide_alphas = _per_block(given, "conv_block_alphas", argument_values.to_numbers, blocks)
    fallback = wide or Size(0, 1.0 if alpha is None else alpha)
    return BlockRule(common, wide, by_block, _sizes(wide_dims, wide_alphas, fallback, blocks, rates))


def read_rates(given: Mapping[str, str], blocks: BlockList) -> tuple[float, ...]:
    """Return how fast each block learns relative to the others, or nothing if no argument says so.

    Raises:
        UserError: a value is neither a list of numbers nor the name of a curve.
    """
    names = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
    if not any(given.get(name) for name in names):
        _warn_of_rest(given, ("block_lr_zero_threshold",), "down_lr_weight, mid_lr_weight or up_lr_weight")
        return ()
    read = argument_values.read(
        given, "block_lr_zero_threshold", argument_values.to_ratio, "a number, 0 or more"
    )
    least = read or 0.0
    ways = [
        _way(given, name, n) for name, n in zip(names, (blocks.down, blocks.middle, blocks.up), strict=True)
    ]
    inside = [rate if rate > least else 0.0 for way in ways for rate in way]
    return (*[1.0] * blocks.before, *inside, *[1.0] * blocks.after)


def _way(given: Mapping[str, str], name: str, count: int) -> list[float]:
    """Return `count` rates: as listed, on a curve, or all 1."""
    text = given.get(name)
    if not text:
        return [1.0] * count
    if "," not in text and name != "mid_lr_weight":
        return _curve(name, text, count)
    expected = f"{count} numbers separated by commas"
    rates = argument_values.read(given, name, argument_values.to_numbers, expected) or []
    if len(rates) != count:
        rest = "further blocks learn at rate 1" if len(rates) < count else "the rest is left out"
        logger.warning("--network_args %s has %d numbers for %d blocks; %s", name, len(rates), count, rest)
    return [*rates, *[1.0] * count][:count]


def _curve(name: str, text: str, count: int) -> list[float]:
    """Return the rates of `sine`, `cosine+.1` ...: a curve, and what is added to it everywhere."""
    curve, _, base = text.partition("+")
    try:
        height = argument_values.to_ratio(base or "0")
        shape = _PRESETS[curve]
    except (KeyError, ValueError):
        raise UserError(
            f"--network_args {name}={text}: give {count} numbers, or one of {', '.join(_PRESETS)} "
            "(sine+0.1 adds 0.1)"
        ) from None
    return [shape(index / max(1, count - 1)) + height for index in range(count)]


def _sizes(
    dims: Sequence[int] | None,
    alphas: Sequence[float] | None,
    fallback: Size,
    blocks: BlockList,
    rates: Sequence[float],
) -> tuple[Size, ...]:
    dims = [fallback.rank] * len(blocks) if dims is None else dims
    all_alphas = [fallback.alpha] * len(blocks) if alphas is None else alphas
    learns = [rate != 0 for rate in rates] or [True] * len(blocks)
    return tuple(Size(d if on else 0, a) for d, a, on in zip(dims, all_alphas, learns, strict=True))


def _per_block(
    given: Mapping[str, str],
    name: str,
    convert: Callable[[str], list[argument_values.Value]],
    blocks: BlockList,
) -> list[argument_values.Value] | None:
    values = argument_values.read(given, name, convert, f"{len(blocks)} numbers separated by commas")
    if values is not None and len(values) != len(blocks):
        raise UserError(
            f"--network_args {name} has {len(values)} numbers for this model's {len(blocks)} blocks; "
            "give one for each"
        )
    return values


def _warn_of_rest(given: Mapping[str, str], names: Iterable[str], needed: str) -> None:
    for name in names:
        if name in given:
            logger.warning("--network_args %s has no effect without %s", name, needed)
