"""Adapter files as changes of single weights, made one at a time and without a model to run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sfumato.adapters.files.dialects.reading import read_content
from sfumato.adapters.layers import kinds
from sfumato.adapters.layers.formulas.composition import parameters_of
from sfumato.adapters.layers.layer import AdapterLayer, ChangesParameters, as_module, with_parameters
from sfumato.adapters.network.loading import layers_from
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.interface.targets import AdapterTarget

logger = logging.getLogger(__name__)

_VALUES_AT_ONCE = 1 << 22
"""What fits into a processor's cache, about: rows are taken by so many values."""


@dataclass(frozen=True)
class Adapter:
    """An adapter file that is to change weights.

    Attributes:
        layers: tensors of each layer, as `read_adapter` returns them.
        strength: of each layer, by its name in the file, whatever its alpha.
        embeddings: those of new words that came with the adapter, by their keys in the file.
    """

    path: Path
    layers: Mapping[str, Mapping[str, Tensor]]
    strength: Callable[[str], float]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, strength: Callable[[str], float]) -> Adapter:
        """Open a file; its tensors are read when they are used.

        Raises:
            UserError: the file is missing, broken or no adapter.
        """
        if not path.exists():
            raise UserError(f"--models names {path}, which does not exist; check the path")
        content = read_content(path)
        layers = content.layers
        adapter = cls(path, layers, strength, content.embeddings)
        if not any(name.startswith(adapter.prefixes) for name in layers):
            raise UserError(
                f"--models: {path} names its layers {next(iter(layers))} ..., and not lora_unet_ ...; "
                "use another file"
            )
        if off := sum(map(adapter.is_off, layers)):
            number = counted(off, "layer is", "layers are")
            logger.info("%s: %s switched off by an alpha of 0", path, number)
        return adapter

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """What may stand before layers' names: what our kinds put there, and those of other packages."""
        found = (kinds.loading(tensors, name) for name, tensors in self.layers.items())
        return tuple(dict.fromkeys((*kinds.prefixes(), *(kind.prefix for kind in found if kind))))

    def name_for(self, target: AdapterTarget) -> str | None:
        """Return what the file calls a layer; None if it leaves it alone."""
        return next((p + target.name for p in self.prefixes if p + target.name in self.layers), None)

    def is_off(self, name: str) -> bool:
        """Return whether a layer changes nothing at any strength, for its alpha is 0."""
        kind, alpha = kinds.loading(self.layers[name], name), self.layers[name].get("alpha")
        is_switch = kind is None or kind.files.is_off_at_0
        return is_switch and alpha is not None and float(alpha) == 0

    def needs_weight(self, name: str) -> bool:
        """Return whether what a layer changes depends on the weight that it meets."""
        kind = kinds.loading(self.layers[name], name)
        return kind is not None and kind.files.needs_weight

    def changes_bias(self, name: str) -> bool:
        """Return whether a layer's tensors change a bias, too."""
        kind = kinds.loading(self.layers[name], name)
        return kind is not None and kind.files.load is None and "bias" in parameters_of(self.layers[name])

    def factors(self, target: AdapterTarget) -> tuple[Tensor, Tensor] | None:
        """Return up (m, r), scaled, and down (r, n), if the change of a layer is their product."""
        name = self.name_for(target) or ""
        tensors = self.layers[name]
        kind = kinds.loading(tensors, name)
        return kind.files.factors(tensors) if kind else None

    def layer(self, target: AdapterTarget) -> AdapterLayer:
        """Make and load the adapter of one layer.

        Raises:
            UserError: the file's tensors are of no known kind, or do not fit the layer.
        """
        name = self.name_for(target)
        if name is None:
            raise ValueError(f"{self.path} has no adapter for {target.name}")
        own = {name: self.layers[name]}
        network = AdapterNetwork(layers_from(self.path, own, [target]))
        network.load_layers(self.path, own)
        return network.requires_grad_(False).eval().layers[0]

    def changes(self, target: AdapterTarget, parameter: str) -> bool:
        """Return whether the file changes that parameter of a layer; see `layer` for errors."""
        name = self.name_for(target)
        kind = kinds.loading(self.layers[name], name) if name else None
        if kind is None or kind.files.load:
            return name is not None and parameter == "weight"
        layer = self.layer(target)
        return isinstance(layer, ChangesParameters) and parameter in layer.changed


@torch.no_grad()
def changed(
    weight: Tensor,
    target: AdapterTarget,
    adapters: Sequence[Adapter],
    dtype: torch.dtype,
    device: torch.device,
    parameter: str = "weight",
) -> Tensor:
    """Return a parameter with the changes of adapters, one after the other, computed in float32.

    LoRAs are added a few rows at a time, so that no change is ever made whole.

    Args:
        weight: what the target's layer has there, in any format; it stays as it is.
        target: the layer; its own weight is not looked at.
        dtype: of the result.
        parameter: the name that the target's layer has for it.
    """
    touching = [adapter for adapter in adapters if adapter.changes(target, parameter)]
    named = [(adapter, name) for adapter in touching if (name := adapter.name_for(target))]
    own = [(adapter, adapter.strength(name)) for adapter, name in named if not adapter.is_off(name)]
    own = [(adapter, strength) for adapter, strength in own if strength]
    factors = [adapter.factors(target) for adapter, _ in own]
    if all(factors):
        pairs = [(pair, strength) for pair, (_, strength) in zip(factors, own, strict=True) if pair]
        return _with_products(weight, pairs, dtype, device)
    total = weight.to(device, torch.float32, copy=True)
    total = total.reshape(target.module.get_parameter(parameter).shape)
    for adapter, strength in own:
        module = with_parameters(target.module, {parameter: total})
        layer = adapter.layer(replace(target, module=module))
        as_module(layer).to(device)
        if isinstance(layer, ChangesParameters):
            total.add_(layer.change_of(parameter, strength))
        else:
            total.add_(layer.delta(), alpha=strength)
    return total.to(dtype).reshape(weight.shape)


def _with_products(
    weight: Tensor,
    pairs: Sequence[tuple[tuple[Tensor, Tensor], float]],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return a weight plus products of up (m, r) and down (r, n), each times its strength."""
    if not pairs:
        return weight.to(device, dtype)
    up = torch.cat([up.to(device, torch.float32) * strength for (up, _), strength in pairs], 1)
    down = torch.cat([down.to(device, torch.float32) for (_, down), _ in pairs])
    matrix, result = weight.flatten(1), torch.empty(weight.shape, dtype=dtype, device=device)
    rows = max(1, _VALUES_AT_ONCE // matrix.shape[1])
    for start in range(0, matrix.shape[0], rows):
        part = matrix[start : start + rows].to(device, torch.float32)
        result.view(matrix.shape)[start : start + rows] = torch.addmm(part, up[start : start + rows], down)
    return result
