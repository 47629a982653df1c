"""Adapters as the options describe them, before there is a model to adapt."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.layers import kinds
from sfumato.adapters.layers.ggpo import Noise
from sfumato.adapters.layers.kind import AdapterKind
from sfumato.adapters.layers.layer import NO_DROPOUTS, AdapterLayer, Dropouts, as_module
from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork, Network
from sfumato.adapters.network.placement import owners_of, require_placed
from sfumato.adapters.network.rates import PLAIN_RATES, Rates
from sfumato.adapters.network.selection import Rule, require_matches
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.targets import AdapterTarget

logger = logging.getLogger(__name__)


class NetworkPlan(Protocol):
    """What the options ask for, checked; the model need not be loaded yet."""

    @property
    def arguments(self) -> Mapping[str, str]:
        """`--network_args` as text, for the file's metadata."""
        ...

    def parts(self, family: Family) -> list[str]:
        """Return the names of the parts that `build` needs, text encoders first."""
        ...

    def build(self, family: Family, models: Mapping[str, nn.Module]) -> Network:
        """Make the network, with the weights to start from; it is not attached unless it has to be.

        Args:
            family: of the models.
            models: the parts that `parts` names.

        Raises:
            UserError: an argument or a file does not fit the model.
        """
        ...

    def rehearse(self, family: Family, models: Mapping[str, nn.Module]) -> Network | None:
        """Make the network on models of the meta device: what cannot work is found before weights are loaded.

        Returns:
            A network without numbers; None if it can only be made with those of the models.

        Raises:
            UserError: as `build`.
        """
        ...


@dataclass(frozen=True)
class AdapterPlan:
    """An adapter of a kind of ours, to be built once the model is there; see `Plan`.

    Attributes:
        rule: which layers are adapted, and how large.
        kind: makes one layer's adapter, and gives it what no file says of it.
        settings: the kind's arguments; rank and alpha are the rule's.
        dropouts: what is left out during training.
        text_encoders: positions of the text encoders to adapt.
        weights: file to take kinds, ranks and alphas from, or None.
        start: file to load into the network, or None.
        allows_partial: layers of a file that fit nothing are left out instead of refused.
        arguments: `--network_args` as they were given.
    """

    rule: Rule
    kind: AdapterKind[Any]
    settings: Any
    dropouts: Dropouts = NO_DROPOUTS
    rates: Rates = PLAIN_RATES
    is_verbose: bool = False
    text_encoders: tuple[int, ...] = ()
    trains_denoiser: bool = True
    weights: Path | None = None
    start: Path | None = None
    allows_partial: bool = False
    arguments: Mapping[str, str] = field(default_factory=dict)

    def parts(self, family: Family) -> list[str]:
        """Return the names of the parts that are adapted, text encoders first.

        Raises:
            UserError: a text encoder is asked for that there is not.
        """
        encoders = list(family.text_outputs)
        if missing := [i for i in self.text_encoders if i >= len(encoders)]:
            raise UserError(
                f"--network_args ask for text encoder {missing[0] + 1}, but the files given hold "
                f"{len(encoders)} ({', '.join(encoders)}); name its file, or leave the argument out"
            )
        texts = [part for i, part in enumerate(encoders) if i in self.text_encoders]
        return [*texts, DENOISER] if self.trains_denoiser else texts

    def build(self, family: Family, models: Mapping[str, nn.Module]) -> Network:
        """Make the network; see `Plan`."""
        targets = [
            target for part in self.parts(family) for target in family.adapter_targets(part, models[part])
        ]
        network = self._network(targets, list(family.text_outputs))
        refined = {layer.name: self.refine(layer) for layer in network.layers}
        network.noises = {name: noise for name, noise in refined.items() if noise}
        if self.start:
            logger.info(self._loaded(network, self.start))
        _require_trainable(network.layers, self.weights)
        _require_some_on(network.layers, self.weights or self.start)
        if self.is_verbose:
            for layer in network.layers:
                logger.info("%s", layer)
        if not network.layers:
            raise UserError("--network_args leave no layer to adapt; choose more blocks or ranks above 0")
        require_matches("network_reg_lrs", self.rates.by_name, [layer.name for layer in network.layers])
        return network

    def rehearse(self, family: Family, models: Mapping[str, nn.Module]) -> Network:
        """Make the network, which asks for no numbers; see `Plan`."""
        return self.build(family, models)

    def refine(self, layer: AdapterLayer) -> Noise | None:
        """Give a layer what no file says of it; return the noise that acts on it in training, if any."""
        return self.kind.refine(layer, self.settings)

    def _network(self, targets: Sequence[AdapterTarget], text_parts: Sequence[str]) -> AdapterNetwork:
        if self.weights:
            return network_from_file(
                self.weights,
                targets,
                self.dropouts,
                text_parts,
                self.rates,
                allow_partial=self.allows_partial,
            )
        self.rule.check(targets)
        return AdapterNetwork.from_targets(targets, self._layer, text_parts, self.rates)

    def _loaded(self, network: AdapterNetwork, path: Path) -> str:
        tensors, targets = read_adapter(path), [layer.target for layer in network.layers]
        placed = {layer.name for layer in network.layers}
        require_placed(
            path,
            tensors,
            placed,
            owners_of(targets),
            is_partial=self.allows_partial,
            remedy="take all layers of the file with --dim_from_weights",
        )
        return network.load_layers(path, tensors)

    def _layer(self, target: AdapterTarget) -> AdapterLayer | None:
        size = self.rule.size_of(target)
        if size is None:
            return None
        settings = self.kind.sized(self.settings, size.rank, size.alpha)
        assert self.kind.make is not None  # a kind that can be asked for by name
        return self.kind.make(target, settings, self.dropouts)


def _require_trainable(layers: Sequence[AdapterLayer], path: Path | None) -> None:
    """Raise UserError if a file has a layer that nothing of is trained here."""
    for layer in layers:
        tensors = as_module(layer).state_dict()
        if not any(True for _ in as_module(layer).parameters()):
            kind = kinds.loading(tensors, layer.name)
            title = kind.title if kind else "another kind"
            raise UserError(
                f"--network_weights {path}: {layer.name} is {title}, which is not trained here; train it on "
                "with --network_module lycoris.kohya, or merge it into the base model"
            )


def _require_some_on(layers: Sequence[AdapterLayer], path: Path | None) -> None:
    if layers and all(layer.is_off for layer in layers):
        raise UserError(
            f"--network_weights {path} switches every layer off with an alpha of 0, so that nothing would be "
            "trained; use another file"
        )
