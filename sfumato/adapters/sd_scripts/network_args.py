"""What `--network_args` can say: of a kind of adapter, and of a family's layers.

The facts of a family say what its layers are called, `kind_readers.py` what the kinds understand; this file
reads arguments by them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sfumato.adapters.layers.kinds import Kind
from sfumato.adapters.layers.layer import Dropouts
from sfumato.adapters.network.rates import PlusRatios, Rates
from sfumato.adapters.network.selection import PatternRule, RankRule, Rule, Size
from sfumato.adapters.sd_scripts import argument_values, blocks
from sfumato.config.run.model.network import NetworkConfig
from sfumato.errors import UserError
from sfumato.models.interface.layers import Layers

logger = logging.getLogger(__name__)

Given = Mapping[str, str]

_NEURON = "neuron"


@dataclass(frozen=True)
class KindReader:
    """How arguments speak of a kind of adapter.

    Attributes:
        kind: what they speak of.
        read: reads the kind's own arguments and returns them as the kind takes them.
        arguments: the names of those.
        rule: reads which layers are adapted and how large; None reads the arguments of `Layers`.
        has_patterns: ranks and rates can be given for names of layers.
        can_split: projections that are fused in one layer can be adapted apart.
        has_text_encoders: it adapts text encoders too.
        alpha: what programs mean that call the module without one.
    """

    kind: Kind
    read: Callable[[Given], Any]
    arguments: tuple[str, ...] = ()
    rule: Callable[[Layers, Size, Given], Rule] | None = None
    has_patterns: bool = False
    can_split: bool = False
    has_text_encoders: bool = True
    alpha: float = 1.0

    @property
    def dropouts(self) -> tuple[str, ...]:
        """The arguments of the dropouts that the kind heeds; `--network_dropout` is another option."""
        return tuple(f"{what}_dropout" for what in self.kind.dropouts if what != _NEURON)

    @property
    def has_neurons(self) -> bool:
        """Whether there is a place for `--network_dropout`."""
        return _NEURON in self.kind.dropouts


@dataclass(frozen=True)
class Dialect:
    """One of our modules under its name in `--network_module`.

    Attributes:
        joins_text_encoders: all text encoders learn at the first of their rates.
        without_effect: arguments that sd-scripts takes although they change nothing.
    """

    reader: KindReader
    joins_text_encoders: bool = False
    without_effect: tuple[str, ...] = ()

    def check(self, given: Given, layers: Layers, config: NetworkConfig) -> None:
        """Refuse arguments that are not known, and name those that change nothing."""
        reader = self.reader
        known = ["verbose", *reader.dropouts, *reader.arguments, *self.without_effect]
        if reader.kind.has_plus:
            known += _PLUS
        if reader.can_split and layers.are_fused:
            known.append("split_qkv")
        if reader.has_patterns:
            known += _PATTERNS
        if reader.rule is None:
            known += _arguments_of(layers)
        argument_values.require_known(given, known)
        for key in given:
            if key in (*self.without_effect, *layers.without_effect):
                logger.warning("--network_args %s has no effect on this model; leave it out", key)
            elif config.dim_from_weights and key in _size_arguments_of(layers):
                logger.warning(
                    "--network_args %s has no effect: --dim_from_weights takes it from the file", key
                )
            elif config.network_train_unet_only and key in layers.on_request and flag(given, key):
                logger.warning("--network_args %s has no effect with --network_train_unet_only", key)


def _arguments_of(layers: Layers) -> tuple[str, ...]:
    """Return all arguments about a family's layers."""
    own = (*layers.kinds, *layers.listed, *layers.blocks, *layers.on_request, *layers.without_effect)
    if layers.block_list:
        own += (*blocks.SIZE_ARGUMENTS, *blocks.RATE_ARGUMENTS)
    return (*own, "train_blocks") if layers.blocks else own


def _size_arguments_of(layers: Layers) -> tuple[str, ...]:
    """Return those that say which layers are adapted and how large, which a file can tell instead."""
    own = (*layers.kinds, *layers.listed, *layers.blocks, "train_blocks", "split_qkv", "network_reg_dims")
    return (*own, *blocks.SIZE_ARGUMENTS) if layers.block_list else own


_PATTERNS = ("network_reg_dims", "network_reg_lrs")
_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")


def read_rule(reader: KindReader, layers: Layers, common: Size, given: Given, rates: Sequence[float]) -> Rule:
    """Return which layers are adapted, and how large.

    Args:
        common: rank and alpha where no argument says otherwise.
        rates: of the blocks, as `read_rates` returns them.
    """
    if reader.rule is not None:
        return reader.rule(layers, common, given)
    rule = _read_layers(layers, common, given, rates)
    expected = "pairs of a regular expression and a rank, as in img_attn=8,single.*mod=4"
    ranks = argument_values.read(
        given, "network_reg_dims", partial(argument_values.to_patterns, argument_values.to_rank), expected
    )
    return PatternRule(ranks, common.alpha, rule) if ranks else rule


def _read_layers(layers: Layers, common: Size, given: Given, rates: Sequence[float]) -> Rule:
    if layers.block_list:
        return blocks.read_rule(given, common, layers.block_list, rates)
    by_kind = {}
    for key, kind in layers.kinds.items():
        own = argument_values.read(given, key, argument_values.to_rank, "a rank, 0 or more")
        if own is not None:
            by_kind[kind] = own
    for key, kinds in layers.listed.items():
        expected = f"{len(kinds)} ranks: {','.join(kinds)}"
        ranks = argument_values.read(given, key, argument_values.to_ranks, expected)
        if ranks is not None and len(ranks) != len(kinds):
            raise UserError(f"--network_args {key}={given[key]}: give {expected}")
        by_kind |= dict(zip(kinds, ranks or (), strict=False))
    options = {kind: key for key, kind in layers.blocks.items()}
    return RankRule(common.rank, common.alpha, by_kind, _selected(layers, given), options)


def read_rates(dialect: Dialect, layers: Layers, given: Given) -> Rates:
    """Return how learning rates differ between layers."""
    common, denoiser, text_encoders = (
        argument_values.read(given, key, argument_values.to_ratio, "how many times faster, for example 16")
        for key in _PLUS
    )
    plus = PlusRatios(denoiser or common, text_encoders or common)
    by_block = blocks.read_rates(given, layers.block_list) if layers.block_list else ()
    expected = "pairs of a regular expression and a learning rate, as in img_attn=1e-4,single=5e-5"
    by_name = argument_values.read(
        given, "network_reg_lrs", partial(argument_values.to_patterns, argument_values.to_ratio), expected
    )
    return Rates(plus, by_block, dialect.joins_text_encoders, by_name or ())


def read_dropouts(reader: KindReader, config: NetworkConfig, given: Given) -> Dropouts:
    """Return what is left out during training."""
    rank, module = (
        argument_values.read(given, key, argument_values.to_probability, "a probability below 1")
        for key in ("rank_dropout", "module_dropout")
    )
    if config.network_dropout and not reader.has_neurons:
        logger.warning("--network_dropout has no effect on this --network_module; leave it out")
    return Dropouts(config.network_dropout, rank, module)


def read_text_encoders(reader: KindReader, layers: Layers, given: Given) -> tuple[int, ...]:
    """Return the positions of the text encoders that are adapted."""
    if not reader.has_text_encoders:
        return ()
    return (*layers.text_encoders, *(place for key, place in layers.on_request.items() if flag(given, key)))


def flag(given: Given, key: str) -> bool:
    """Return whether an argument is given and true."""
    return bool(argument_values.read(given, key, argument_values.to_bool, "True or False"))


def _selected(layers: Layers, given: Given) -> dict[str, frozenset[int] | None]:
    expected = "indices such as 0-3,7 (below 1000), or all, or none"
    selected = {
        kind: argument_values.read(given, key, argument_values.to_indices, expected)
        for key, kind in layers.blocks.items()
    }
    only = given.get("train_blocks", "all")
    if only not in ("all", *selected):
        raise UserError(f"--network_args train_blocks={only}: give all, {', '.join(selected)}")
    for key, kind in layers.blocks.items():
        if key in given and only not in ("all", kind):
            logger.warning("--network_args %s has no effect with train_blocks=%s", key, only)
    return {kind: indices if only in ("all", kind) else frozenset() for kind, indices in selected.items()}
