"""One adapted layer: what every kind of adapter can do, and how it gets into a model and out again.

A kind of adapter is one file beside this one (`lora.py` is the first): an `nn.Module` that meets
`AdapterLayer`, with parameters and buffers named as its files name them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfumato.models.interface.targets import AdapterTarget

Strength = float | Tensor
"""How strongly an adapter acts: one number, or (B,), one number per sample of a batch."""


@dataclass(frozen=True)
class Dropouts:
    """Probabilities in [0, 1) of leaving something out during training; None or 0 leaves nothing out.

    Attributes:
        neuron: each value between the two halves of a low-rank change; other kinds have no such place.
        rank: each rank of a sample, or where a change has no ranks to leave out, each output of the layer.
        module: the whole layer, for one forward pass.
    """

    neuron: float | None = None
    rank: float | None = None
    module: float | None = None


NO_DROPOUTS = Dropouts()


class AdapterLayer(Protocol):
    """A learned change of one Linear or Conv2d; always an `nn.Module` too.

    Attributes:
        name: the layer's key in adapter files, prefix included.
        target: the layer that is changed; it is not a submodule of the adapter.
        strength: 0 leaves the layer as it was.
    """

    name: str
    target: AdapterTarget
    strength: Strength

    @property
    def is_off(self) -> bool:
        """Whether alpha is 0, so that the layer changes nothing and learns nothing."""
        ...

    def change(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return the layer's output with the adapter at work.

        Args:
            inputs: (B, ..., in) of a Linear, (B, in, H, W) of a Conv2d.
            output: what the layer itself made of it.
        """
        ...

    def delta(self) -> Tensor:
        """Return the change of the layer's weight at strength 1, shaped like the weight, in float32."""
        ...

    def plus_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that LoRA+ trains at a higher rate."""
        ...


@runtime_checkable
class LimitsNorm(Protocol):
    """An adapted layer whose change can be scaled down."""

    def norm(self) -> Tensor:
        """Return the Frobenius norm of the change at strength 1; 0-d, on the adapter's device."""
        ...

    def scale(self, factor: Tensor) -> None:
        """Multiply the change by a factor, 0-d, each half of it by as much."""
        ...


@runtime_checkable
class TurnsWeight(Protocol):
    """An adapted layer whose change is known relative to the weight alone."""

    def turned_share(self) -> Tensor:
        """Return how large the change of the weight is to be expected, relative to the weight; 0-d."""
        ...


@runtime_checkable
class ChangesParameters(Protocol):
    """An adapted layer that changes other parameters than the weight, or depends on the strength otherwise.

    Attributes:
        changed: names of the target's parameters that it changes.
    """

    changed: tuple[str, ...]

    def change_of(self, name: str, strength: float) -> Tensor:
        """Return the change of one of these parameters, in its shape, in float32."""
        ...


def as_module(layer: AdapterLayer) -> nn.Module:
    """Return the layer as the nn.Module that it is."""
    if not isinstance(layer, nn.Module):
        raise ValueError(f"{layer.name} is not an nn.Module")
    return layer


def attach(layer: AdapterLayer) -> RemovableHandle:
    """Let `layer` act on its target from now on, until the returned handle is removed.

    Several adapters may act on one layer, and may leave in any order.
    """

    def change(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return layer.change(inputs[0], output)

    return layer.target.module.register_forward_hook(change)


@torch.no_grad()
def limit_norm(layer: LimitsNorm, limit: float) -> tuple[Tensor, Tensor]:
    """Scale a layer's change down where its norm at strength 1 is above `limit`.

    Returns:
        What is left of the norm, and whether something was scaled; 0-d, on the adapter's device.
    """
    norm = layer.norm()
    ratio = (limit / norm).clamp(max=1.0)
    layer.scale(ratio)
    return norm * ratio, ratio < 1


@torch.no_grad()
def merge(layer: AdapterLayer, strength: float | None = None) -> None:
    """Add the adapter's changes to its target's parameters for good, computed in float32.

    Args:
        layer: an adapter that is not attached, or its change would count twice.
        strength: the layer's own strength where None.
    """
    factor = layer.strength if strength is None else strength
    if isinstance(factor, Tensor):
        raise ValueError("a strength per sample cannot be merged into a weight")
    if isinstance(layer, ChangesParameters):
        changes = {name: layer.change_of(name, factor) for name in layer.changed}
    else:
        changes = {"weight": layer.delta() * factor}
    for name, change in changes.items():
        parameter = layer.target.module.get_parameter(name)
        parameter.copy_((parameter.float() + change.to(parameter.device)).to(parameter.dtype))


def with_parameters(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Return a module like the given one, with these parameters in place of those of the same names."""
    other = copy.copy(module)
    given = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in parameters.items()}
    other._parameters = {**module._parameters, **given}
    return other


def per_sample(strength: Strength, like: Tensor) -> Strength:
    """Return a strength that multiplies `like` (B, ...) sample by sample.

    A text encoder may see several chunks per sample; they are neighbours in its batch.
    """
    if not isinstance(strength, Tensor):
        return strength
    repeats = like.shape[0] // strength.shape[0]
    spread = strength.to(like.device, like.dtype).repeat_interleave(repeats)
    return spread.reshape(-1, *[1] * (like.dim() - 1))
