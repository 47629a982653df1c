"""Which parameters of adapters are trained together, and at which rate."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sfumato.adapters.layers.layer import AdapterLayer, as_module
from sfumato.adapters.network.selection import first_match
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained at one rate.

    Attributes:
        parameters: none is in two groups.
        learning_rate: None where the optimizer finds its own.
        name: what logs call it (`unet`, `textencoder 1 ` ... as sd-scripts does).
        options: further settings of an optimizer for this group.
        last_step: the last step that changes them; None for that of the run.
    """

    parameters: list[nn.Parameter]
    learning_rate: float | None
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    last_step: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the form that torch optimizers take."""
        rate = {} if self.learning_rate is None else {"lr": self.learning_rate}
        return {"params": self.parameters, **rate, **self.options}


PLUS = " plus"
"""What the names of groups end in that LoRA+ trains faster."""


@dataclass(frozen=True)
class PlusRatios:
    """LoRA+ (arXiv:2402.12354): how many times faster the plus parameters of each part are trained."""

    denoiser: float | None = None
    text_encoders: float | None = None


NO_PLUS = PlusRatios()


@dataclass(frozen=True)
class Rates:
    """How learning rates differ between the layers of one part, and how they are grouped.

    Attributes:
        plus: rates of the plus parameters.
        blocks: for each of the denoiser's blocks, counted through, its rate relative to the denoiser's; empty
            for one rate.
        joins_text_encoders: all text encoders share one group, and the first of their rates.
        by_name: rates of layers in whose name a pattern is found; the first counts, whatever the part's rate.
    """

    plus: PlusRatios = NO_PLUS
    blocks: tuple[float, ...] = ()
    joins_text_encoders: bool = False
    by_name: tuple[tuple[re.Pattern[str], float], ...] = ()


PLAIN_RATES = Rates()


@dataclass(frozen=True)
class Grouping:
    """How layers are put together into groups.

    Attributes:
        text_parts: names of the family's text encoders in order, for their learning rates.
    """

    rates: Rates
    text_parts: Sequence[str]

    def groups(
        self,
        layers: Iterable[AdapterLayer],
        default_lr: float | None,
        denoiser_lr: float | None,
        text_encoder_lrs: Sequence[float] | None,
    ) -> list[ParameterGroup]:
        """Return what to train at which rate, as `Network.parameter_groups` has it."""
        named: dict[str, list[AdapterLayer]] = defaultdict(list)
        for layer in layers:
            named[self._name(layer)].append(layer)
        groups = []
        for name, members in named.items():
            part = members[0].target.part
            if part == DENOISER:
                own, ratio = denoiser_lr, self.rates.plus.denoiser
            else:
                own, ratio = _nth(text_encoder_lrs, self._text_index(part)), self.rates.plus.text_encoders
            rate = self._rate(members[0], default_lr if own is None else own)
            groups += _groups(name, members, rate, ratio)
        return [group for group in groups if group.parameters and group.learning_rate != 0]

    def _text_index(self, part: str) -> int:
        if self.rates.joins_text_encoders or part not in self.text_parts:
            return 0
        return self.text_parts.index(part)

    def _name(self, layer: AdapterLayer) -> str:
        target, place = layer.target, first_match(self.rates.by_name, layer.name)
        if target.part != DENOISER:
            is_joined = self.rates.joins_text_encoders
            name = "textencoder" if is_joined else f"textencoder {self._text_index(target.part) + 1} "
        else:
            name = f"unet_block{target.block[1]}" if self.rates.blocks and target.block else "unet"
        return name if place is None else f"{name} reg_lr_{place}"

    def _rate(self, layer: AdapterLayer, rate: float | None) -> float | None:
        """Return a layer's rate where its part learns at `rate`."""
        place = first_match(self.rates.by_name, layer.name)
        if place is not None:
            return self.rates.by_name[place][1]
        return None if rate is None else rate * self._weight(layer.target)

    def _weight(self, target: AdapterTarget) -> float:
        is_weighted = target.part == DENOISER and self.rates.blocks and target.block
        return self.rates.blocks[target.block[1]] if is_weighted and target.block else 1.0


def _groups(
    name: str, layers: Sequence[AdapterLayer], rate: float | None, ratio: float | None
) -> list[ParameterGroup]:
    """Return one group, or two where LoRA+ trains some parameters faster."""
    learning = [layer for layer in layers if not layer.is_off]
    parameters = [parameter for layer in learning for parameter in as_module(layer).parameters()]
    if not ratio or rate is None:
        return [ParameterGroup(parameters, rate, name)]
    plus = [parameter for layer in learning for parameter in layer.plus_parameters()]
    plus_ids = {id(parameter) for parameter in plus}
    others = [parameter for parameter in parameters if id(parameter) not in plus_ids]
    return [ParameterGroup(others, rate, name), ParameterGroup(plus, rate * ratio, f"{name}{PLUS}")]


def _nth(values: Sequence[float] | None, index: int) -> float | None:
    if not values:
        return None
    return values[index] if index < len(values) else values[-1]
