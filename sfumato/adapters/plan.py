"""Adapters as the options describe them, before there is a model to adapt."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import nn

from sfumato.adapters.loading import network_from_file
from sfumato.adapters.lora import NO_DROPOUTS, Dropouts, Lora
from sfumato.adapters.network import NO_PLUS, AdapterNetwork, Network, PlusRatios
from sfumato.adapters.selection import RankRule
from sfumato.errors import UserError
from sfumato.models.family import DENOISER, AdapterTarget, Family

logger = logging.getLogger(__name__)


class Plan(Protocol):
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


@dataclass(frozen=True)
class LoraPlan:
    """A LoRA to be built once the model is there; see `Plan`.

    Attributes:
        text_encoders: positions of the text encoders to adapt.
        weights: file to take ranks and alphas from, or None.
        start: file to load into the network, or None.
    """

    rule: RankRule
    alpha: float | None
    dropouts: Dropouts = NO_DROPOUTS
    plus_ratios: PlusRatios = NO_PLUS
    is_split: bool = False
    is_verbose: bool = False
    text_encoders: tuple[int, ...] = ()
    trains_denoiser: bool = True
    weights: Path | None = None
    start: Path | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)

    def parts(self, family: Family) -> list[str]:
        """Return the names of the parts that are adapted, text encoders first."""
        texts = [part for i, part in enumerate(family.text_outputs) if i in self.text_encoders]
        return [*texts, DENOISER] if self.trains_denoiser else texts

    def build(self, family: Family, models: Mapping[str, nn.Module]) -> Network:
        """Make the network; see `Plan`."""
        targets = [
            target for part in self.parts(family) for target in family.adapter_targets(part, models[part])
        ]
        network = self._network(targets, list(family.text_outputs))
        if self.start:
            logger.info(network.load(self.start))
        if self.is_verbose:
            for layer in network.layers:
                logger.info("%s", layer)
        if not network.layers:
            raise UserError("--network_args leave no layer to adapt; choose more blocks or ranks above 0")
        return network

    def _network(self, targets: Sequence[AdapterTarget], text_parts: Sequence[str]) -> AdapterNetwork:
        if self.weights:
            makers = {
                "lora_down.weight": lambda target, tensors: Lora.from_tensors(target, tensors, self.dropouts)
            }
            return network_from_file(self.weights, targets, makers, text_parts, self.plus_ratios)
        self.rule.check(targets)
        return AdapterNetwork.from_targets(targets, self._layer, text_parts, self.plus_ratios)

    def _layer(self, target: AdapterTarget) -> Lora | None:
        rank = self.rule.rank_of(target)
        splits = target.splits if self.is_split else ()
        return Lora(target, rank, self.alpha, self.dropouts, splits) if rank else None
