"""`--network_module` as sd-scripts names it: our own adapters under their old names, or anybody's module.

This is the only file that knows which arguments belong to which family.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.adapters import arguments
from sfumato.adapters.foreign import ForeignPlan
from sfumato.adapters.lora import Dropouts
from sfumato.adapters.network import AdapterNetwork, PlusRatios
from sfumato.adapters.plan import LoraPlan, Plan
from sfumato.adapters.plugin import PluginNetwork
from sfumato.adapters.selection import RankRule
from sfumato.config.network import NetworkConfig
from sfumato.config.run import Run
from sfumato.errors import UserError
from sfumato.models.family import DENOISER, family_for

DEFAULT_RANK = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Dialect:
    """How one of our modules is spoken to.

    Attributes:
        family: whose models it adapts.
        kinds: arguments that set the rank of one kind of layer, with that kind.
        listed: arguments that set several ranks at once, with the kinds in order.
        blocks: arguments that select blocks by index, with the kind of block.
        text_encoders: positions of the text encoders that are adapted by default.
        on_request: arguments that call up further text encoders, with their positions.
        without_effect: arguments that sd-scripts takes although they change nothing.
        unsupported: arguments that are known but not built yet.
    """

    family: str
    kinds: Mapping[str, str]
    listed: Mapping[str, tuple[str, ...]]
    blocks: Mapping[str, str]
    text_encoders: tuple[int, ...]
    on_request: Mapping[str, int]
    without_effect: tuple[str, ...]
    unsupported: tuple[str, ...]


_COMMON = (
    "rank_dropout",
    "module_dropout",
    "split_qkv",
    "verbose",
    "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio",
)

_FLUX_KINDS = ("img_attn", "txt_attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod", "single", "single_mod")

_DIALECTS = {
    "networks.lora_flux": _Dialect(
        family="flux",
        kinds={f"{kind}_dim": kind for kind in _FLUX_KINDS},
        listed={"in_dims": ("img_in", "time_in", "vector_in", "guidance_in", "txt_in")},
        blocks={"train_double_block_indices": "double", "train_single_block_indices": "single"},
        text_encoders=(0,),
        on_request={"train_t5xxl": 1},
        without_effect=("conv_dim", "conv_alpha"),  # there are no 3x3 convolutions in it
        unsupported=("ggpo_beta", "ggpo_sigma", "network_reg_dims", "network_reg_lrs"),
    )
}

_OURS_LATER = (
    "networks.lora",
    "networks.lora_fa",
    "networks.dylora",
    "networks.oft",
    "networks.oft_flux",
    "networks.lora_sd3",
)


def resolve(run: Run) -> Plan:
    """Return what `--network_module` and the options beside it ask for.

    Raises:
        UserError: the module is not known or not supported, or an argument is wrong.
    """
    config = run[NetworkConfig]
    given = arguments.split(config.network_args or ())
    name = config.network_module or _name_for(run.family)
    if config.dim_from_weights and not config.network_weights:
        raise UserError("--dim_from_weights needs a file to read from; give --network_weights")
    if config.network_train_unet_only and config.network_train_text_encoder_only:
        raise UserError(
            "--network_train_unet_only and --network_train_text_encoder_only leave nothing; drop one"
        )
    if name in _DIALECTS:
        if _DIALECTS[name].family != run.family:
            raise UserError(f"--network_module {name} is for another model; use {_name_for(run.family)}")
        return _lora_plan(_DIALECTS[name], config, given)
    if name in _OURS_LATER:
        raise UserError(f"--network_module {name} is not supported yet; use {_name_for(run.family)}")
    return _foreign_plan(name, run, given)


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: Any,
    unet: nn.Module,
    neuron_dropout: float | None = None,
    **kwargs: Any,
) -> PluginNetwork:
    """Make a FLUX.1 LoRA for a program that speaks sd-scripts' plug-in interface."""
    config = NetworkConfig(
        network_dim=network_dim,
        network_alpha=1.0 if network_alpha is None else network_alpha,
        network_dropout=neuron_dropout,
    )
    return _plugin(config, kwargs, multiplier, text_encoder, unet)


def create_network_from_weights(
    multiplier: float,
    file: str,
    vae: Any,
    text_encoder: Any,
    unet: nn.Module,
    weights_sd: Mapping[str, Any] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[PluginNetwork, Mapping[str, Any]]:
    """Make the network that a FLUX.1 LoRA file describes, and return it with the file's tensors."""
    config = NetworkConfig(network_weights=file, dim_from_weights=True)
    network = _plugin(config, kwargs, multiplier, text_encoder, unet, all_text_encoders=True)
    return network, weights_sd or network.state_dict()


def _plugin(
    config: NetworkConfig,
    kwargs: Mapping[str, Any],
    multiplier: float,
    text_encoder: Any,
    unet: nn.Module,
    all_text_encoders: bool = False,
) -> PluginNetwork:
    dialect = _DIALECTS["networks.lora_flux"]
    family = family_for(Run("", dialect.family, ()))
    given = {key: str(value) for key, value in kwargs.items() if value is not None and key != "dropout"}
    if all_text_encoders:
        given |= dict.fromkeys(dialect.on_request, "True")
    plan = _lora_plan(dialect, config, given)
    encoders = text_encoder if isinstance(text_encoder, list | tuple) else [text_encoder]
    given_parts = zip(family.text_outputs, encoders, strict=False)
    models = {part: encoder for part, encoder in given_parts if encoder is not None} | {DENOISER: unet}
    present = tuple(
        i for i, part in enumerate(family.text_outputs) if part in models and i in plan.text_encoders
    )
    network = replace(plan, text_encoders=present).build(family, models)
    assert isinstance(network, AdapterNetwork)
    adapted = {layer.target.part for layer in network.layers}
    has_second = any(list(family.text_outputs)[i] in adapted for i in dialect.on_request.values())
    return PluginNetwork(network, multiplier, has_second)


def _lora_plan(dialect: _Dialect, config: NetworkConfig, given: Mapping[str, str]) -> LoraPlan:
    ours = (*dialect.kinds, *dialect.listed, *dialect.blocks, *dialect.on_request, "train_blocks")
    arguments.require_known(given, (*_COMMON, *ours, *dialect.without_effect), dialect.unsupported)
    for key in set(dialect.without_effect) & set(given):
        logger.warning("--network_args %s has no effect on this model; leave it out", key)
    file = Path(config.network_weights) if config.network_weights else None
    return LoraPlan(
        rule=_rule(dialect, config.network_dim or DEFAULT_RANK, given),
        alpha=config.network_alpha,
        dropouts=_dropouts(config, given),
        plus_ratios=_plus_ratios(given),
        is_split=_flag(given, "split_qkv"),
        is_verbose=_flag(given, "verbose"),
        text_encoders=() if config.network_train_unet_only else _text_encoders(dialect, given),
        trains_denoiser=not config.network_train_text_encoder_only,
        weights=file if config.dim_from_weights else None,
        start=None if config.dim_from_weights else file,
        arguments=given,
    )


def _foreign_plan(name: str, run: Run, given: Mapping[str, str]) -> ForeignPlan:
    close = difflib.get_close_matches(name, (*_DIALECTS, *_OURS_LATER), 1, cutoff=0.8)
    if close:
        raise UserError(f"--network_module {name} is unknown; did you mean {close[0]}?")
    config = run[NetworkConfig]
    file = Path(config.network_weights) if config.network_weights else None
    plan = ForeignPlan(
        module_name=name,
        arguments=given,
        rank=config.network_dim,
        alpha=config.network_alpha,
        dropout=config.network_dropout,
        weights=file if config.dim_from_weights else None,
        start=None if config.dim_from_weights else file,
        trains_denoiser=not config.network_train_text_encoder_only,
        trains_text_encoders=not config.network_train_unet_only,
        options=run.values(),
    )
    plan.check()
    return plan


def _rule(dialect: _Dialect, rank: int, given: Mapping[str, str]) -> RankRule:
    by_kind = {}
    for key, kind in dialect.kinds.items():
        own = arguments.read(given, key, arguments.to_rank, "a rank, 0 or more")
        if own is not None:
            by_kind[kind] = own
    for key, kinds in dialect.listed.items():
        ranks = arguments.read(given, key, arguments.to_ranks, f"{len(kinds)} ranks: {','.join(kinds)}")
        if ranks is not None and len(ranks) != len(kinds):
            raise UserError(f"--network_args {key}={given[key]}: give {len(kinds)} ranks: {','.join(kinds)}")
        by_kind |= dict(zip(kinds, ranks or (), strict=False))
    return RankRule(
        rank, by_kind, _blocks(dialect, given), {kind: key for key, kind in dialect.blocks.items()}
    )


def _blocks(dialect: _Dialect, given: Mapping[str, str]) -> dict[str, frozenset[int] | None]:
    expected = "indices such as 0-3,7, or all, or none"
    blocks = {
        kind: arguments.read(given, key, arguments.to_indices, expected)
        for key, kind in dialect.blocks.items()
    }
    only = given.get("train_blocks", "all")
    if only not in ("all", *blocks):
        raise UserError(f"--network_args train_blocks={only}: give all, {', '.join(blocks)}")
    return {kind: indices if only in ("all", kind) else frozenset() for kind, indices in blocks.items()}


def _dropouts(config: NetworkConfig, given: Mapping[str, str]) -> Dropouts:
    rank, module = (
        arguments.read(given, key, arguments.to_probability, "a probability below 1")
        for key in ("rank_dropout", "module_dropout")
    )
    return Dropouts(config.network_dropout, rank, module)


def _plus_ratios(given: Mapping[str, str]) -> PlusRatios:
    common, denoiser, text_encoders = (
        arguments.read(given, key, arguments.to_ratio, "how many times faster, for example 16")
        for key in ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
    )
    return PlusRatios(denoiser or common, text_encoders or common)


def _text_encoders(dialect: _Dialect, given: Mapping[str, str]) -> tuple[int, ...]:
    asked = (position for key, position in dialect.on_request.items() if _flag(given, key))
    return (*dialect.text_encoders, *asked)


def _flag(given: Mapping[str, str], key: str) -> bool:
    return bool(arguments.read(given, key, arguments.to_bool, "True or False"))


def _name_for(family: str) -> str:
    return next((name for name, dialect in _DIALECTS.items() if dialect.family == family), "another module")
