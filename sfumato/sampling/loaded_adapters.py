"""Adapter files at work on a model whose parts come and go: `file;0.8`, several at once, live or merged."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.network.loading import is_known, layers_from
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.placement import owners_of, require_placed
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.targets import AdapterTarget, every_target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterFile:
    """One adapter file and how strongly it acts.

    Attributes:
        allow_partial: layers that fit nothing are left out instead of refused.
    """

    path: Path
    strength: float = 1.0
    allow_partial: bool = False


def parse_adapter(text: str, *, allow_partial: bool = False) -> AdapterFile:
    """Read `file` or `file;strength`.

    Raises:
        UserError: there is no such file, or the strength is no number.
    """
    name, _, strength = text.partition(";")
    try:
        file = AdapterFile(Path(name), float(strength or 1), allow_partial)
    except ValueError:
        raise UserError(f"--lora_weights {text}: '{strength}' is no strength; write file;0.8") from None
    if not file.path.exists():
        raise UserError(f"--lora_weights {text}: there is no file {name}; check the path")
    return file


class Attachments:
    """Brings adapters to each part after it has been loaded: the `on_load` of a pipeline.

    Args:
        family: whose layers the files adapt.
        files: all are read at once, so that a broken one is found before a model loads.
        dtype: of live adapters.
        is_merged: whether the change is written into the weights (quicker steps, strengths stay as they are).

    Raises:
        UserError: a file is broken or holds no adapter of a kind that is known.
    """

    def __init__(
        self, family: Family, files: Sequence[AdapterFile], *, dtype: torch.dtype, is_merged: bool = False
    ) -> None:
        self._family = family
        self._dtype = dtype
        self._is_merged = is_merged
        self._adapters = [_Adapter(file, read_adapter(file.path)) for file in files]

    def check(self) -> None:
        """Raise UserError unless the files fit the model, of which no weight is loaded for it."""
        if not self._adapters:
            return
        targets: list[AdapterTarget] = []
        for part in (*self._family.text_outputs, DENOISER):
            module = self._family.load(part, self._dtype, torch.device("meta"))
            targets += every_target(self._family, part, module)
        for adapter in self._adapters:
            adapter.check(targets)

    def __call__(self, part: str, module: nn.Module) -> None:
        """Let the adapters act on a part that has just been loaded."""
        targets = list(every_target(self._family, part, module)) if self._adapters else []
        for adapter in self._adapters:
            network = adapter.network(part, targets)
            if self._is_merged:
                network.merge(adapter.strength)
            else:
                _attach(network, adapter.strength, next(module.parameters()).device, self._dtype)
                adapter.networks[part] = network

    def set_strengths(self, strengths: Sequence[float] | None) -> None:
        """Set how strongly each adapter acts from now on; None stands for the strengths of the start.

        Raises:
            UserError: the adapters are merged, or there are more or fewer of them.
        """
        chosen = [adapter.file.strength for adapter in self._adapters] if strengths is None else strengths
        if len(chosen) != len(self._adapters):
            raise UserError(
                f"{len(chosen)} adapter strengths for {len(self._adapters)} adapters; give as many"
            )
        for adapter, strength in zip(self._adapters, chosen, strict=True):
            if self._is_merged and strength != adapter.strength:
                raise UserError("merged adapters keep their strength; leave --merge_lora_weights out")
            adapter.set_strength(strength)

    def names(self) -> list[str]:
        """Return the files and the strengths at which they act now, as they would be asked for."""
        return [f"{adapter.file.path.name};{adapter.strength:g}" for adapter in self._adapters]


class _Adapter:
    """One file's layers, and the networks made of them so far, one for each part."""

    def __init__(self, file: AdapterFile, layers: dict[str, dict[str, Tensor]]) -> None:
        self.file = file
        self.strength = file.strength
        self.networks: dict[str, AdapterNetwork] = {}
        self._layers = layers

    def network(self, part: str, targets: Iterable[AdapterTarget]) -> AdapterNetwork:
        """Return the adapters of one part, loaded and in eval mode."""
        known = {name: tensors for name, tensors in self._layers.items() if is_known(name, tensors)}
        network = AdapterNetwork(layers_from(self.file.path, known, targets))
        if own := {layer.name: known[layer.name] for layer in network.layers}:
            network.load_layers(self.file.path, own)
        logger.info("%s at strength %g on %s: %s", self.file.path, self.strength, part, network.describe())
        return network.eval()

    def set_strength(self, strength: float) -> None:
        self.strength = strength
        for network in self.networks.values():
            network.set_strength(strength)

    def check(self, targets: Collection[AdapterTarget]) -> None:
        """Raise UserError if there is no place for layers of the file."""
        names = {target.name for target in targets}
        placed = {
            name
            for name, tensors in self._layers.items()
            if name.partition("_")[2] in names and is_known(name, tensors)
        }
        is_partial = self.file.allow_partial
        require_placed(self.file.path, self._layers, placed, owners_of(targets), is_partial=is_partial)


def _attach(network: AdapterNetwork, strength: float, device: torch.device, dtype: torch.dtype) -> None:
    network.requires_grad_(False).to(device, dtype)
    network.set_strength(strength)
    network.attach()
