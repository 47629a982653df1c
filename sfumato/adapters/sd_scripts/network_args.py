"""What `--network_args` can say: what a kind of adapter understands, and how a family's layers are named.

`legacy.py` holds the tables; this file reads arguments by them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sfumato.adapters.layers import lora_fa
from sfumato.adapters.layers.dylora import NestedRanks
from sfumato.adapters.layers.layer import AdapterLayer, Dropouts
from sfumato.adapters.layers.loha import Loha
from sfumato.adapters.layers.lokr import Lokr, shapes_for
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.layers.oft import DEFAULT_CONSTRAINT, Oft
from sfumato.adapters.network.plan import LayerMaker, Refinement, leave
from sfumato.adapters.network.rates import PlusRatios, Rates
from sfumato.adapters.network.selection import PatternRule, RankRule, Rule, ScopeRule, Size
from sfumato.adapters.sd_scripts import argument_values, blocks
from sfumato.adapters.sd_scripts.blocks import BlockRule
from sfumato.config.run.model.network import NetworkConfig
from sfumato.errors import UserError
from sfumato.models.interface.layers import Layers
from sfumato.models.interface.targets import AdapterTarget

logger = logging.getLogger(__name__)

Given = Mapping[str, str]


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter.

    Attributes:
        maker: reads the kind's own arguments and returns what makes one layer.
        arguments: the names of those.
        refiner: reads arguments and returns what is done to each layer, made anew or read from a file.
        rule: reads which layers are adapted and how large; None reads the arguments of `Layers`.
        dropouts: arguments of the dropouts that it has.
        has_plus: LoRA+ knows which of its parameters to train faster.
        has_neurons: there is a place for `--network_dropout`.
        has_patterns: ranks and rates can be given for names of layers.
        can_split: projections that are fused in one layer can be adapted apart.
        has_text_encoders: it adapts text encoders too.
        alpha: what programs mean that call the module without one.
    """

    maker: Callable[[Given, Dropouts], LayerMaker]
    arguments: tuple[str, ...] = ()
    refiner: Callable[[Given], Refinement] = lambda _: leave
    rule: Callable[[Layers, Size, Given], Rule] | None = None
    dropouts: tuple[str, ...] = ("rank_dropout", "module_dropout")
    has_plus: bool = False
    has_neurons: bool = False
    has_patterns: bool = False
    can_split: bool = False
    has_text_encoders: bool = True
    alpha: float = 1.0


@dataclass(frozen=True)
class Dialect:
    """One of our modules under its name in `--network_module`.

    Attributes:
        joins_text_encoders: all text encoders learn at the first of their rates.
        without_effect: arguments that sd-scripts takes although they change nothing.
    """

    kind: AdapterKind
    joins_text_encoders: bool = False
    without_effect: tuple[str, ...] = ()

    def check(self, given: Given, layers: Layers, config: NetworkConfig) -> None:
        """Refuse arguments that are not known, and name those that change nothing."""
        known = ["verbose", *self.kind.dropouts, *self.kind.arguments, *self.without_effect]
        if self.kind.has_plus:
            known += _PLUS
        if self.kind.can_split and layers.are_fused:
            known.append("split_qkv")
        if self.kind.has_patterns:
            known += _PATTERNS
        if self.kind.rule is None:
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


def read_rule(kind: AdapterKind, layers: Layers, common: Size, given: Given, rates: Sequence[float]) -> Rule:
    """Return which layers are adapted, and how large.

    Args:
        common: rank and alpha where no argument says otherwise.
        rates: of the blocks, as `read_rates` returns them.
    """
    if kind.rule is not None:
        return kind.rule(layers, common, given)
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


def read_dropouts(kind: AdapterKind, config: NetworkConfig, given: Given) -> Dropouts:
    """Return what is left out during training."""
    rank, module = (
        argument_values.read(given, key, argument_values.to_probability, "a probability below 1")
        for key in ("rank_dropout", "module_dropout")
    )
    if config.network_dropout and not kind.has_neurons:
        logger.warning("--network_dropout has no effect on this --network_module; leave it out")
    return Dropouts(config.network_dropout, rank, module)


def read_text_encoders(kind: AdapterKind, layers: Layers, given: Given) -> tuple[int, ...]:
    """Return the positions of the text encoders that are adapted."""
    if not kind.has_text_encoders:
        return ()
    return (*layers.text_encoders, *(place for key, place in layers.on_request.items() if flag(given, key)))


def flag(given: Given, key: str) -> bool:
    """Return whether an argument is given and true."""
    return bool(argument_values.read(given, key, argument_values.to_bool, "True or False"))


def _selected(layers: Layers, given: Given) -> dict[str, frozenset[int] | None]:
    expected = "indices such as 0-3,7, or all, or none"
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


def _lora(given: Given, dropouts: Dropouts) -> LayerMaker:
    is_split = flag(given, "split_qkv")
    return lambda target, size: Lora(
        target, size.rank, size.alpha, dropouts, target.splits if is_split else ()
    )


def _loha(given: Given, dropouts: Dropouts) -> LayerMaker:
    has_core = flag(given, "use_tucker")
    return lambda target, size: Loha(target, size.rank, size.alpha, dropouts, has_core)


def _lokr(given: Given, dropouts: Dropouts) -> LayerMaker:
    factor = argument_values.read(given, "factor", argument_values.to_factor, "how many parts, or -1") or -1
    decomposes, has_core, is_full = (
        flag(given, key) for key in ("decompose_both", "use_tucker", "full_matrix")
    )

    def make(target: AdapterTarget, size: Size) -> Lokr:
        shapes = shapes_for(
            target.module,
            size.rank,
            factor,
            has_low_rank_small=decomposes,
            has_core=has_core,
            is_full=is_full,
        )
        return Lokr(target, shapes, size.alpha, dropouts)

    return make


def _lora_fa(given: Given, dropouts: Dropouts) -> LayerMaker:
    def make(target: AdapterTarget, size: Size) -> Lora:
        layer = Lora(target, size.rank, size.alpha, dropouts)
        lora_fa.draw(layer)
        return layer

    return make


def _frozen(_: Given) -> Refinement:
    return lambda layer: lora_fa.freeze(_as_lora(layer))


def _noisy(given: Given) -> Refinement:
    strengths = [
        argument_values.read(given, key, argument_values.to_ratio, "a number, 0 or more")
        for key in ("ggpo_sigma", "ggpo_beta")
    ]
    sigma, beta = strengths
    if sigma is None and beta is None:
        return leave
    if sigma is None or beta is None:
        raise UserError("--network_args ggpo_sigma and ggpo_beta belong together; give both, or none")
    return lambda layer: _as_lora(layer).add_noise(sigma, beta)


def _nested(given: Given) -> Refinement:
    unit = _unit(given)

    def refine(layer: AdapterLayer) -> None:
        lora = _as_lora(layer)
        if lora.rank % unit:
            raise UserError(f"--network_args unit={unit} does not divide the rank {lora.rank} of {lora.name}")
        lora.nested = NestedRanks(unit)

    return refine


def _unit(given: Given) -> int:
    return argument_values.read(given, "unit", argument_values.to_count, "a number of ranks, 1 or more") or 1


def _as_lora(layer: AdapterLayer) -> Lora:
    if not isinstance(layer, Lora):
        raise UserError(f"this --network_module trains LoRA files, but {layer.name} is of another kind")
    return layer


def _nested_rule(layers: Layers, common: Size, given: Given) -> Rule:
    rank = argument_values.read(given, "conv_dim", argument_values.to_rank, "the rank that --network_dim has")
    if rank and rank != common.rank:
        raise UserError(f"--network_args conv_dim={rank}: give {common.rank}, which --network_dim is")
    if common.rank % _unit(given):
        raise UserError(f"--network_dim {common.rank} is no multiple of --network_args unit={_unit(given)}")
    if "conv_alpha" in given:
        logger.warning("--network_args conv_alpha has no effect: --network_alpha is for all layers")
    return BlockRule(common, common if rank else None)


def _oft(given: Given, dropouts: Dropouts, is_list: bool = False) -> LayerMaker:
    def make(target: AdapterTarget, size: Size) -> Oft:
        constraint = DEFAULT_CONSTRAINT if size.alpha is None else size.alpha
        return Oft(target, size.rank, constraint, dropouts, target.splits if is_list else None)

    return make


def _oft_rule(layers: Layers, common: Size, given: Given) -> Rule:
    return ScopeRule(
        common,
        frozenset(layers.attention),
        has_all_linear=flag(given, "enable_all_linear"),
        has_convolutions=flag(given, "enable_conv"),
        is_split=layers.are_fused,
    )


LORA = AdapterKind(_lora, has_plus=True, has_neurons=True)
LORA_FUSED = replace(
    LORA, arguments=("ggpo_sigma", "ggpo_beta"), refiner=_noisy, has_patterns=True, can_split=True
)
LORA_FA = AdapterKind(_lora_fa, refiner=_frozen, has_neurons=True)
DYLORA = AdapterKind(
    _lora, ("unit", "conv_dim", "conv_alpha"), refiner=_nested, rule=_nested_rule, dropouts=(), has_plus=True
)
LOHA = AdapterKind(_loha, ("use_tucker",))
LOKR = AdapterKind(_lokr, ("factor", "decompose_both", "use_tucker", "full_matrix"))
OFT = AdapterKind(
    _oft,
    ("enable_all_linear", "enable_conv"),
    rule=_oft_rule,
    dropouts=("module_dropout",),
    has_text_encoders=False,
    alpha=DEFAULT_CONSTRAINT,
)
OFT_FUSED = replace(OFT, maker=partial(_oft, is_list=True), arguments=("enable_all_linear",))
