"""All adapters of one run as a whole: what training and generation may ask of them."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfumato.adapters.files import read_adapter, write_adapter
from sfumato.adapters.ggpo import Noise
from sfumato.adapters.layer import AdapterLayer, LimitsNorm, Strength, attach, limit_norm, merge
from sfumato.adapters.selection import first_match
from sfumato.errors import UserError
from sfumato.models.family import DENOISER, AdapterTarget

logger = logging.getLogger(__name__)

LayerFactory = Callable[[AdapterTarget], AdapterLayer | None]
"""Makes the adapter of a layer, or None where the layer stays as it is."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained at one rate.

    Attributes:
        parameters: none is in two groups.
        learning_rate: None where the optimizer finds its own.
        name: what logs call it (`unet`, `textencoder 1 ` ... as sd-scripts does).
        options: further settings of an optimizer for this group.
    """

    parameters: list[nn.Parameter]
    learning_rate: float | None
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the form that torch optimizers take."""
        rate = {} if self.learning_rate is None else {"lr": self.learning_rate}
        return {"params": self.parameters, **rate, **self.options}


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


class Network(Protocol):
    """What training knows of adapters, ours or a foreign module's."""

    @property
    def trainable(self) -> nn.Module:
        """The module to train: its parameters, mode, device and state."""
        ...

    def attach(self) -> None:
        """Let the adapters act on the model; calling it twice changes nothing."""
        ...

    def detach(self) -> None:
        """Leave the model as it was without the adapters."""
        ...

    def set_strength(self, strength: Strength) -> None:
        """Set how strongly all adapters act: one number, or (B,), one per sample of the next batch."""
        ...

    def parameter_groups(
        self, default_lr: float | None, denoiser_lr: float | None, text_encoder_lrs: Sequence[float] | None
    ) -> list[ParameterGroup]:
        """Return what to train at which rate; parts whose rate is 0 are left out.

        Args:
            default_lr: for parts without a rate of their own.
            denoiser_lr: the denoiser's rate.
            text_encoder_lrs: rates of the text encoders in order; one rate is for all of them.
        """
        ...

    def enable_checkpointing(self) -> None:
        """Say that the model recomputes activations in the backward pass."""
        ...

    def on_epoch_start(self) -> None:
        """Get ready for an epoch: training mode above all."""
        ...

    def on_step_start(self) -> None:
        """Get ready for an optimizer step."""
        ...

    def on_step_end(self) -> dict[str, Tensor]:
        """Take note of an optimizer step, whose gradients are still there; return figures for logs, 0-d."""
        ...

    def memory(self) -> dict[str, Tensor]:
        """Return what a resumed run must know besides the weights: the live tensors."""
        ...

    @property
    def can_limit_norms(self) -> bool:
        """Whether `limit_norms` may be called."""
        ...

    def limit_norms(self, limit: float) -> dict[str, Tensor]:
        """Scale every layer's change down to a norm of `limit` at most.

        Returns:
            Figures for logs, 0-d on the device: `max_norm/keys_scaled`, `max_norm/average_key_norm` and
            `max_norm/max_key_norm`.
        """
        ...

    def save(self, path: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """Write the adapter file; `dtype` None keeps what was trained."""
        ...

    def load(self, path: Path) -> str:
        """Load weights of an adapter file and return one line that says what was loaded.

        Raises:
            UserError: nothing in the file fits, or shapes differ.
        """
        ...

    def describe(self) -> str:
        """Return one line that says what is adapted."""
        ...


class AdapterNetwork(nn.Module):
    """Adapters of our own kinds; its state's names are exactly the keys of its files."""

    def __init__(
        self,
        layers: Iterable[AdapterLayer],
        text_parts: Sequence[str] = (),
        rates: Rates = PLAIN_RATES,
    ) -> None:
        """Take layers, in the order in which optimizers and logs see them.

        Args:
            layers: adapters of any kinds, each with a name of its own.
            text_parts: names of the family's text encoders in order, for their learning rates.
            rates: how learning rates differ between layers.
        """
        super().__init__()
        self.layers = list(layers)
        self.text_parts = list(text_parts)
        self.rates = rates
        self.noises: dict[str, Noise] = {}
        self._handles: list[RemovableHandle] = []
        for layer in self.layers:
            self.add_module(layer.name, _as_module(layer))

    @classmethod
    def from_targets(
        cls,
        targets: Iterable[AdapterTarget],
        factory: LayerFactory,
        text_parts: Sequence[str] = (),
        rates: Rates = PLAIN_RATES,
    ) -> AdapterNetwork:
        """Let `factory` adapt the layers that it chooses among `targets`."""
        layers = [layer for layer in map(factory, targets) if layer is not None]
        return cls(layers, text_parts, rates)

    @property
    def trainable(self) -> nn.Module:
        """The network itself."""
        return self

    @property
    def is_attached(self) -> bool:
        """Whether the adapters act on the model."""
        return bool(self._handles)

    def attach(self) -> None:
        """Let the adapters act on the model; calling it twice changes nothing."""
        if not self._handles:
            self._handles = [attach(layer) for layer in self.layers]

    def detach(self) -> None:
        """Leave the model as it was without the adapters."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def set_strength(self, strength: Strength) -> None:
        """Set how strongly all adapters act: one number, or (B,), one per sample of the next batch."""
        for layer in self.layers:
            if (
                isinstance(strength, Tensor)
                or isinstance(layer.strength, Tensor)
                or layer.strength != strength
            ):
                layer.strength = strength  # setting a module's attribute takes longer than looking at it

    def merge(self, strength: float | None = None) -> None:
        """Write the adapters' change into the model's weights for good, and detach them."""
        self.detach()
        for layer in self.layers:
            merge(layer, strength)

    def parameter_groups(
        self, default_lr: float | None, denoiser_lr: float | None, text_encoder_lrs: Sequence[float] | None
    ) -> list[ParameterGroup]:
        """Return what to train at which rate; see `Network`."""
        named: dict[str, list[AdapterLayer]] = defaultdict(list)
        for layer in self.layers:
            named[self._group_name(layer)].append(layer)
        groups = []
        for name, layers in named.items():
            target = layers[0].target
            if target.part == DENOISER:
                own, ratio = denoiser_lr, self.rates.plus.denoiser
            else:
                own, ratio = (
                    _nth(text_encoder_lrs, self._text_index(target.part)),
                    self.rates.plus.text_encoders,
                )
            rate = self._rate(layers[0], default_lr if own is None else own)
            groups += _groups(name, layers, rate, ratio)
        return [group for group in groups if group.parameters and group.learning_rate != 0]

    def enable_checkpointing(self) -> None:
        """Do nothing: our adapters lie inside the blocks that are recomputed."""

    def on_epoch_start(self) -> None:
        """Switch the adapters' dropouts on."""
        self.train()

    def on_step_start(self) -> None:
        """Tell the noises, if layers have any."""
        for noise in self.noises.values():
            noise.step_begins()

    def on_step_end(self) -> dict[str, Tensor]:
        """Tell the noises, and return their mean norms."""
        if not self.noises:
            return {}
        changes, gradients = zip(*[noise.step_ends() for noise in self.noises.values()], strict=True)
        return {
            "ggpo/change_norm": torch.stack(changes).mean(),
            "ggpo/gradient_norm": torch.stack(gradients).mean(),
        }

    def memory(self) -> dict[str, Tensor]:
        """Return the gradients' norms that the noises go by."""
        return {f"{name}.gradient_norms": noise.gradient_norms for name, noise in self.noises.items()}

    @property
    def can_limit_norms(self) -> bool:
        """Whether there is a layer of a kind that can."""
        return any(isinstance(layer, LimitsNorm) for layer in self.layers)

    def limit_norms(self, limit: float) -> dict[str, Tensor]:
        """Scale every layer's change down to a norm of `limit` at most; see `Network`."""
        limited = [limit_norm(layer, limit) for layer in self.layers if isinstance(layer, LimitsNorm)]
        norms, are_scaled = zip(*limited, strict=True)
        left = torch.stack(norms)
        return norm_figures(torch.stack(are_scaled).sum(), left.mean(), left.max())

    def save(self, path: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """Write the adapter file, hashes included; `dtype` None keeps what was trained."""
        write_adapter(path, self.state_dict(), metadata, dtype)

    def load(self, path: Path) -> str:
        """Load the layers that the file and the network share; see `Network`.

        Layers that only one of the two has are counted in a warning: those of the file would be lost in the
        next save, those of the network start untrained.
        """
        return self.load_layers(path, read_adapter(path))

    def load_layers(self, path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> str:
        """Load what `read_adapter` returned of a file, as `load` does."""
        known = {layer.name: _as_module(layer) for layer in self.layers}
        shared = [name for name in tensors if name in known]
        if not shared:
            raise UserError(
                f"{path} fits none of the {len(known)} adapted layers; {_difference(tensors, known)}"
            )
        for name in shared:
            _load_layer(path, name, known[name], tensors[name])
        _warn_of_rest(
            path, [name for name in known if name not in tensors], "the file lacks; they start untrained"
        )
        _warn_of_rest(
            path, [name for name in tensors if name not in known], "the network lacks; they are lost"
        )
        return f"{path}: {len(shared)} of {len(known)} layers loaded"

    def describe(self) -> str:
        """Return one line such as `adapts 304 layers of denoiser, 72 of clip_l`."""
        counts = Counter(layer.target.part for layer in self.layers)
        parts = ", ".join(
            f"{count} of {part}" for part, count in sorted(counts.items(), key=lambda item: -item[1])
        )
        return f"adapts {parts.replace(' of', ' layers of', 1)}" if parts else "adapts nothing"

    def _text_index(self, part: str) -> int:
        if self.rates.joins_text_encoders or part not in self.text_parts:
            return 0
        return self.text_parts.index(part)

    def _group_name(self, layer: AdapterLayer) -> str:
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


def norm_figures(num_scaled: Tensor, mean: Tensor, largest: Tensor) -> dict[str, Tensor]:
    """Return what `Network.limit_norms` reports, under the names that sd-scripts logs."""
    return {
        "max_norm/keys_scaled": num_scaled,
        "max_norm/average_key_norm": mean,
        "max_norm/max_key_norm": largest,
    }


def _groups(
    name: str, layers: Sequence[AdapterLayer], rate: float | None, ratio: float | None
) -> list[ParameterGroup]:
    """Return one group, or two where LoRA+ trains some parameters faster."""
    parameters = [parameter for layer in layers for parameter in _as_module(layer).parameters()]
    if not ratio or rate is None:
        return [ParameterGroup(parameters, rate, name)]
    plus = [parameter for layer in layers for parameter in layer.plus_parameters()]
    plus_ids = {id(parameter) for parameter in plus}
    others = [parameter for parameter in parameters if id(parameter) not in plus_ids]
    return [ParameterGroup(others, rate, name), ParameterGroup(plus, rate * ratio, f"{name} plus")]


def _as_module(layer: AdapterLayer) -> nn.Module:
    if not isinstance(layer, nn.Module):
        raise ValueError(f"{layer.name} is not an nn.Module")
    return layer


def _nth(values: Sequence[float] | None, index: int) -> float | None:
    if not values:
        return None
    return values[index] if index < len(values) else values[-1]


def _load_layer(path: Path, name: str, layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = layer.state_dict()
    if tensors.keys() != own.keys():
        found, expected = ", ".join(sorted(tensors)), ", ".join(sorted(own))
        raise UserError(f"{path}: {name} holds {found} instead of {expected}; is it another kind of adapter?")
    fitting = {key: _fit(tensors[key], value) for key, value in own.items()}
    for key, value in fitting.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"{path}: {name}.{key} is {_shape(value)}, this model and rank need "
                f"{_shape(own[key])}; use the file's rank (--dim_from_weights), or another file"
            )
    for key, buffer in layer.named_buffers():
        if key in own and fitting[key].is_floating_point() and not buffer.is_floating_point():
            layer.register_buffer(key, fitting[key].float())  # an alpha of 0.5 must not become the integer 0
    layer.load_state_dict(fitting)


def _fit(value: Tensor, own: Tensor) -> Tensor:
    """Add or drop the 1x1 kernel of a layer that is a convolution in one program and a Linear in another."""
    same = value.dim() != own.dim() and [n for n in value.shape if n > 1] == [n for n in own.shape if n > 1]
    return value.reshape(own.shape) if same else value


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _difference(tensors: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    theirs, ours = next(iter(tensors), "nothing"), next(iter(known), "nothing")
    return f"it holds {theirs} ..., the network {ours} ...; is it for another model?"


def _warn_of_rest(path: Path, names: Sequence[str], what: str) -> None:
    if names:
        logger.warning("%s: %d layers (%s ...) are what %s", path, len(names), names[0], what)
