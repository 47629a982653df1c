"""How `--network_args` speak of our kinds of adapters: a reader for each module that sd-scripts has."""

from __future__ import annotations

import logging
from dataclasses import replace

from sfumato.adapters.layers import dylora, loha, lokr, lora, lora_fa, oft
from sfumato.adapters.layers.dylora import DyloraArguments
from sfumato.adapters.layers.loha import LohaArguments
from sfumato.adapters.layers.lokr import LokrArguments
from sfumato.adapters.layers.lora import LoraArguments
from sfumato.adapters.layers.oft import DEFAULT_CONSTRAINT, OftArguments
from sfumato.adapters.network.selection import Rule, ScopeRule, Size
from sfumato.adapters.sd_scripts import argument_values
from sfumato.adapters.sd_scripts.blocks import BlockRule
from sfumato.adapters.sd_scripts.network_args import Given, KindReader, flag
from sfumato.errors import UserError
from sfumato.models.interface.layers import Layers

logger = logging.getLogger(__name__)


def _lora(given: Given) -> LoraArguments:
    sigma, beta = (
        argument_values.read(given, key, argument_values.to_ratio, "a number, 0 or more")
        for key in ("ggpo_sigma", "ggpo_beta")
    )
    if (sigma is None) != (beta is None):
        raise UserError("--network_args ggpo_sigma and ggpo_beta belong together; give both, or none")
    return LoraArguments(is_split=flag(given, "split_qkv"), ggpo_sigma=sigma, ggpo_beta=beta)


def _lora_fa(given: Given) -> LoraArguments:
    return LoraArguments()


def _dylora(given: Given) -> DyloraArguments:
    return DyloraArguments(unit=_unit(given))


def _unit(given: Given) -> int:
    return argument_values.read(given, "unit", argument_values.to_count, "a number of ranks, 1 or more") or 1


def _dylora_rule(layers: Layers, common: Size, given: Given) -> Rule:
    rank = argument_values.read(given, "conv_dim", argument_values.to_rank, "the rank that --network_dim has")
    if rank and rank != common.rank:
        raise UserError(f"--network_args conv_dim={rank}: give {common.rank}, which --network_dim is")
    if common.rank % _unit(given):
        raise UserError(f"--network_dim {common.rank} is no multiple of --network_args unit={_unit(given)}")
    if "conv_alpha" in given:
        logger.warning("--network_args conv_alpha has no effect: --network_alpha is for all layers")
    return BlockRule(common, common if rank else None)


def _loha(given: Given) -> LohaArguments:
    return LohaArguments(has_core=flag(given, "use_tucker"))


def _lokr(given: Given) -> LokrArguments:
    factor = argument_values.read(given, "factor", argument_values.to_factor, "how many parts, or -1") or -1
    decomposes, has_core, is_full = (
        flag(given, key) for key in ("decompose_both", "use_tucker", "full_matrix")
    )
    return LokrArguments(factor=factor, has_low_rank_small=decomposes, has_core=has_core, is_full=is_full)


def _oft(given: Given) -> OftArguments:
    return OftArguments()


def _fused_oft(given: Given) -> OftArguments:
    return OftArguments(is_list=True)


def _oft_rule(layers: Layers, common: Size, given: Given) -> Rule:
    return ScopeRule(
        common,
        frozenset(layers.attention),
        has_all_linear=flag(given, "enable_all_linear"),
        has_convolutions=flag(given, "enable_conv"),
        is_split=layers.are_fused,
    )


LORA = KindReader(lora.KIND, _lora)
LORA_FUSED = replace(LORA, arguments=("ggpo_sigma", "ggpo_beta"), has_patterns=True, can_split=True)
LORA_FA = KindReader(lora_fa.KIND, _lora_fa)
DYLORA = KindReader(dylora.KIND, _dylora, ("unit", "conv_dim", "conv_alpha"), rule=_dylora_rule)
LOHA = KindReader(loha.KIND, _loha, ("use_tucker",))
LOKR = KindReader(lokr.KIND, _lokr, ("factor", "decompose_both", "use_tucker", "full_matrix"))
OFT = KindReader(
    oft.KIND,
    _oft,
    ("enable_all_linear", "enable_conv"),
    rule=_oft_rule,
    has_text_encoders=False,
    alpha=DEFAULT_CONSTRAINT,
)
OFT_FUSED = replace(OFT, read=_fused_oft, arguments=("enable_all_linear",))
