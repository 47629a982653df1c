"""`--network_module` as sd-scripts names it: our own adapters under their old names, or anybody's module.

Which modules adapt a family, and how arguments speak of its layers, the family's facts say.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from sfumato.adapters.layers import kinds
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.plan import AdapterPlan, NetworkPlan
from sfumato.adapters.network.selection import Size
from sfumato.adapters.sd_scripts import argument_values
from sfumato.adapters.sd_scripts.field_reader import reader_for
from sfumato.adapters.sd_scripts.kind_readers import (
    DYLORA,
    LOHA,
    LOKR,
    LORA,
    LORA_FA,
    LORA_FUSED,
    OFT,
    OFT_FUSED,
)
from sfumato.adapters.sd_scripts.network_args import (
    Dialect,
    flag,
    read_dropouts,
    read_rates,
    read_rule,
    read_text_encoders,
)
from sfumato.adapters.sd_scripts.plugin_api import PluginNetwork
from sfumato.adapters.sd_scripts.third_party_plan import ForeignPlan
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.catalogue import facts_of, our_facts
from sfumato.models.interface.family import DENOISER
from sfumato.models.registry.families import family_for

DEFAULT_RANK = 4

logger = logging.getLogger(__name__)


_DIALECTS = {
    "networks.lora_flux": Dialect(LORA_FUSED),
    "networks.lora_sd3": Dialect(LORA_FUSED),
    # "dropout" is taken from those who come from LyCORIS
    "networks.lora": Dialect(LORA, joins_text_encoders=True, without_effect=("dropout",)),
    "networks.lora_fa": Dialect(LORA_FA, joins_text_encoders=True, without_effect=("dropout",)),
    "networks.dylora": Dialect(DYLORA, joins_text_encoders=True),
    "networks.oft_flux": Dialect(OFT_FUSED),
    "networks.oft": Dialect(OFT),
    "networks.loha": Dialect(LOHA),
    "networks.lokr": Dialect(LOKR),
}
"""Our modules. The facts of a family say which of them adapt it."""

_LYCORIS_FULL = Path(__file__).with_name("lycoris_full.toml")

_LYCORIS = "lycoris.kohya"
_LYCORIS_WITHOUT_LAYERS = {
    "LycorisNetworkKohya": {
        "UNET_TARGET_REPLACE_MODULE": [],
        "UNET_TARGET_REPLACE_NAME": [],
        "TEXT_ENCODER_TARGET_REPLACE_MODULE": [],
    }
}
"""Before it reads a file it makes a network by its own lists, which fit no U-Net, and throws it away."""


def resolve(run: Run) -> NetworkPlan:
    """Return what `--network_module` and the options beside it ask for.

    Raises:
        UserError: the module is not known or not supported, or an argument is wrong.
    """
    config = run[NetworkConfig]
    given = argument_values.split(config.network_args or ())
    name = config.network_module or default_module(run.family)
    _check_options(config)
    dialect = _dialect(name)
    if dialect is None:
        return _foreign_plan(name, run, given)
    if name in _DIALECTS and name not in facts_of(run.family).network_modules:
        raise UserError(f"--network_module {name} is for another model; use {default_module(run.family)}")
    if config.network_train_text_encoder_only and not dialect.reader.has_text_encoders:
        raise UserError(
            f"--network_train_text_encoder_only: {name} adapts no text encoder; choose another module"
        )
    plan = _plan(dialect, run.family, config, given)
    return replace(plan, allows_partial=run.get(PartialUseConfig, PartialUseConfig()).allow_partial)


def is_own(name: str) -> bool:
    """Return whether a module's files are read as adapters of our own, LyCORIS' kinds among them."""
    return name in _DIALECTS or name == _LYCORIS or kinds.named(name) is not None


def _check_options(config: NetworkConfig) -> None:
    if config.dim_from_weights and not config.network_weights:
        raise UserError("--dim_from_weights needs a file to read from; give --network_weights")
    if config.network_train_unet_only and config.network_train_text_encoder_only:
        raise UserError(
            "--network_train_unet_only and --network_train_text_encoder_only leave nothing; drop one"
        )


def _dialect(name: str) -> Dialect | None:
    """Return how arguments speak to one of our modules, or to a kind of adapter that is named itself."""
    if name in _DIALECTS or f"networks.{name}" in _DIALECTS:
        return _DIALECTS.get(name)
    kind = kinds.named(name)
    if kind is None:
        return None
    if kind.make is None:
        raise UserError(f"--network_module {name} is not trained here; use lycoris.kohya, which has its kind")
    return Dialect(reader_for(kind))


def default_module(family: str) -> str:
    """Return the `--network_module` whose LoRA fits a family."""
    return next(iter(facts_of(family).network_modules), "another module")


class PluginModule:
    """One of our modules for programs that speak sd-scripts' plug-in interface."""

    def __init__(self, name: str) -> None:
        """Take the module's name, as `--network_module` has it."""
        self._name = name
        self._dialect = _DIALECTS[name]

    def create_network(
        self,
        multiplier: float,
        network_dim: int | None,
        network_alpha: float | None,
        vae: Any,
        text_encoder: Any,
        unet: nn.Module,
        neuron_dropout: float | None = None,
        **kwargs: Any,
    ) -> PluginNetwork:
        """Make a network; further arguments are those of `--network_args`."""
        config = NetworkConfig(
            network_dim=network_dim,
            network_alpha=self._dialect.reader.alpha if network_alpha is None else network_alpha,
            network_dropout=neuron_dropout,
        )
        return self._network(config, kwargs, multiplier, text_encoder, unet)

    def create_network_from_weights(
        self,
        multiplier: float,
        file: str,
        vae: Any,
        text_encoder: Any,
        unet: nn.Module,
        weights_sd: Mapping[str, Any] | None = None,
        for_inference: bool = False,
        **kwargs: Any,
    ) -> tuple[PluginNetwork, Mapping[str, Any]]:
        """Make the network that a file describes, and return it with the file's tensors."""
        config = NetworkConfig(network_weights=file, dim_from_weights=True)
        network = self._network(config, kwargs, multiplier, text_encoder, unet, all_text_encoders=True)
        return network, weights_sd or network.state_dict()

    def _network(
        self,
        config: NetworkConfig,
        kwargs: Mapping[str, Any],
        multiplier: float,
        text_encoder: Any,
        unet: nn.Module,
        all_text_encoders: bool = False,
    ) -> PluginNetwork:
        name = _family_of(unet, self._name)
        family, layers = family_for(Run("", name, ())), facts_of(name).layers
        given = {key: str(value) for key, value in kwargs.items() if value is not None and key != "dropout"}
        if all_text_encoders:
            given |= dict.fromkeys(layers.on_request, "True")
        plan = _plan(self._dialect, name, config, given)
        encoders = text_encoder if isinstance(text_encoder, list | tuple) else [text_encoder]
        texts = list(family.text_outputs)
        models = {part: model for part, model in zip(texts, encoders, strict=False) if model is not None}
        present = tuple(i for i in plan.text_encoders if texts[i] in models)
        network = replace(plan, text_encoders=present).build(family, models | {DENOISER: unet})
        assert isinstance(network, AdapterNetwork)
        adapted = {layer.target.part for layer in network.layers}
        has_second = any(texts[i] in adapted for i in layers.on_request.values())
        return PluginNetwork(network, multiplier, has_second)


def _family_of(unet: nn.Module, module: str) -> str:
    """Return which of the families that a network module adapts a denoiser belongs to."""
    adapted = [facts for facts in our_facts() if module in facts.network_modules]
    marked = [facts for facts in adapted if facts.mark and getattr(unet, facts.mark, None) is not None]
    unmarked = [facts for facts in adapted if not facts.mark]
    return (marked or unmarked or adapted)[0].name


def _plan(dialect: Dialect, family: str, config: NetworkConfig, given: Mapping[str, str]) -> AdapterPlan:
    layers = facts_of(family).layers
    dialect.check(given, layers, config)
    if dialect.joins_text_encoders and len(config.text_encoder_lr or ()) > 1:
        logger.warning("--text_encoder_lr: this --network_module uses the first rate for all text encoders")
    file = Path(config.network_weights) if config.network_weights else None
    rates = read_rates(dialect, layers, given)
    dropouts = read_dropouts(dialect.reader, config, given)
    return AdapterPlan(
        rule=read_rule(
            dialect.reader,
            layers,
            Size(config.network_dim or DEFAULT_RANK, config.network_alpha),
            given,
            rates.blocks,
        ),
        kind=dialect.reader.kind,
        settings=dialect.reader.read(given),
        dropouts=dropouts,
        rates=rates,
        is_verbose=flag(given, "verbose"),
        text_encoders=()
        if config.network_train_unet_only
        else read_text_encoders(dialect.reader, layers, given),
        trains_denoiser=not config.network_train_text_encoder_only,
        weights=file if config.dim_from_weights else None,
        start=None if config.dim_from_weights else file,
        arguments=given,
    )


def _foreign_plan(name: str, run: Run, given: Mapping[str, str]) -> ForeignPlan:
    full = f"networks.{name}"
    is_ours = full in _DIALECTS and find_spec(name.partition(".")[0]) is None
    close = [full] if is_ours else difflib.get_close_matches(name, [*_DIALECTS], 1, cutoff=0.8)
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
        layers_stand_alone=name == _LYCORIS,
        class_values=_LYCORIS_WITHOUT_LAYERS if name == _LYCORIS and config.dim_from_weights else {},
        replaced={"preset": str(_LYCORIS_FULL)} if _asks_for_full_lycoris(name, given) else {},
    )
    plan.check()
    return plan


def _asks_for_full_lycoris(name: str, given: Mapping[str, str]) -> bool:
    return name == _LYCORIS and given.get("preset", "full") == "full"
