"""Adapter files that become part of the base before training: `--base_weights`.

A change is merged into weights that can hold it. A weight stored in 8 bits cannot: the change is mostly
smaller than the weight's rounding error, so there the adapter stays beside it and acts in every step.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.layers.layer import AdapterLayer, attach, merge
from sfumato.adapters.network.loading import layers_from
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.placement import owners_of, require_placed
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.targets import AdapterTarget, every_target
from sfumato.nn.precision import computable, is_storage_only

logger = logging.getLogger(__name__)

_META = torch.device("meta")


@dataclass(frozen=True)
class _File:
    """One file's layers, by the part that they belong to."""

    path: Path
    strength: float
    layers: Mapping[str, Mapping[str, Mapping[str, Tensor]]]


class BaseAdapters:
    """Changes each part of a model right after it has been loaded; a `PartChange`."""

    def __init__(
        self, family: Family, paths: Sequence[str], strengths: Sequence[float], *, allow_partial: bool = False
    ) -> None:
        """Read the files and see that they fit.

        Args:
            strengths: of the files in order; those that are not given are 1.
            allow_partial: layers that fit nothing are left out instead of refused.

        Raises:
            UserError: a file is missing, broken, no adapter or for another model; strengths outnumber files.
        """
        if len(strengths) > len(paths):
            raise UserError(
                f"--base_weights_multiplier has {len(strengths)} values for {len(paths)} --base_weights; "
                "give at most one for each"
            )
        self._family = family
        models = {part: family.load(part, torch.bfloat16, _META) for part in (*family.text_outputs, DENOISER)}
        targets = {part: list(every_target(family, part, model)) for part, model in models.items()}
        padded = [*strengths, *[1.0] * (len(paths) - len(strengths))]
        self._files = [_read(Path(path), padded[i], targets, allow_partial) for i, path in enumerate(paths)]

    def __call__(self, part: str, module: nn.Module, device: torch.device) -> None:
        """Change a part that has just been loaded; see `PartChange`."""
        targets = list(every_target(self._family, part, module)) if self.mark(part) else []
        for file in self._files:
            if own := file.layers.get(part):
                network = _network(file.path, own, targets).requires_grad_(False).eval()
                for layer in network.layers:
                    _take_in(layer, file.strength, device)
                logger.info("%s at %g: %s", file.path, file.strength, network.describe())

    def mark(self, part: str) -> str:
        """Return what tells a changed part from others, for caches; "" if it is as it was."""
        digest = hashlib.sha256()
        changes = [(file.strength, file.layers[part]) for file in self._files if part in file.layers]
        for strength, layers in changes:
            digest.update(f"{strength:g}".encode())
            for name, tensors in layers.items():
                for rest, tensor in tensors.items():
                    digest.update(f"{name}.{rest}".encode())
                    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32] if changes else ""


def _read(
    path: Path, strength: float, targets: Mapping[str, Sequence[AdapterTarget]], allow_partial: bool
) -> _File:
    if not path.exists():
        raise UserError(f"--base_weights {path}: there is no such file; check the path")
    tensors, layers = read_adapter(path), {}
    for part, own_targets in targets.items():
        names = [layer.name for layer in layers_from(path, tensors, own_targets)]
        own = {name: tensors[name] for name in names}
        if own:
            layers[part] = own
            _network(path, own, own_targets)  # complains of shapes that do not fit
    placed = {name for own in layers.values() for name in own}
    owners = owners_of(target for own in targets.values() for target in own)
    require_placed(path, tensors, placed, owners, is_partial=allow_partial)
    return _File(path, strength, layers)


def _network(
    path: Path, layers: Mapping[str, Mapping[str, Tensor]], targets: Sequence[AdapterTarget]
) -> AdapterNetwork:
    network = AdapterNetwork(layers_from(path, layers, targets))
    network.load_layers(path, layers)
    return network


def _take_in(layer: AdapterLayer, strength: float, device: torch.device) -> None:
    """Merge a layer, or leave it at work beside a weight that is too coarse."""
    weight = next(layer.target.module.parameters(recurse=False))
    if not is_storage_only(weight.dtype):
        merge(layer, strength)
        return
    assert isinstance(layer, nn.Module)
    layer.to(device, computable(weight.dtype))
    layer.strength = strength
    attach(layer)
