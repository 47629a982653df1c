"""Networks made from adapter files: kinds and ranks are read off the tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.layers import kinds
from sfumato.adapters.layers.formulas.formula_layer import FormulaLayer
from sfumato.adapters.layers.layer import NO_DROPOUTS, AdapterLayer, Dropouts
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.placement import owners_of, require_placed
from sfumato.adapters.network.rates import PLAIN_RATES, Rates
from sfumato.errors import UserError
from sfumato.models.interface.targets import AdapterTarget

logger = logging.getLogger(__name__)


def network_from_file(
    path: Path,
    targets: Iterable[AdapterTarget],
    dropouts: Dropouts = NO_DROPOUTS,
    text_parts: Sequence[str] = (),
    rates: Rates = PLAIN_RATES,
    *,
    allow_partial: bool = False,
) -> AdapterNetwork:
    """Make and load the network that a file describes.

    Args:
        path: an adapter file.
        targets: layers of the parts to adapt, those included that are adapted only when asked for.
        dropouts: what the layers leave out during training.
        text_parts, rates: as in `AdapterNetwork`.
        allow_partial: layers that fit no target are left out instead of refused.

    Raises:
        UserError: the file is broken, of an unknown kind, or a layer of a part that is there fits no target.
    """
    tensors, targets = read_adapter(path), list(targets)
    layers = layers_from(path, tensors, targets, dropouts)
    placed = {layer.name for layer in layers}
    require_placed(path, tensors, placed, owners_of(targets), is_partial=allow_partial)
    network = AdapterNetwork(layers, text_parts, rates)
    logger.info(network.load_layers(path, tensors))
    return network


def layers_from(
    path: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    targets: Iterable[AdapterTarget],
    dropouts: Dropouts = NO_DROPOUTS,
) -> list[AdapterLayer]:
    """Make, without loading them, the layers among `targets` that a file's tensors describe.

    Args:
        path: the file, for messages.
        tensors: of each layer, as `read_adapter` returns them.
        targets, dropouts: as in `network_from_file`.
    """
    found = {name: _kind(path, name, layer) for name, layer in tensors.items()}
    prefixes = {kind.prefix for kind in found.values()}
    names = ((target, prefix + target.name) for target in targets for prefix in prefixes)
    return [
        _layer(path, found[name], target, tensors[name], dropouts) for target, name in names if name in found
    ]


def is_known(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a layer's tensors are of a kind that can be loaded."""
    return kinds.loading(tensors, name) is not None


def _layer(
    path: Path, kind: kinds.Kind, target: AdapterTarget, tensors: Mapping[str, Tensor], dropouts: Dropouts
) -> AdapterLayer:
    load = kind.files.load or FormulaLayer.from_tensors
    try:
        return load(target, tensors, dropouts)
    except ValueError as error:  # a LoRA of a norm, say
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} does not fit the model's {target.name}: {reason}; use another file"
        ) from None


def _kind(path: Path, name: str, tensors: Mapping[str, Tensor]) -> kinds.Kind:
    kind = kinds.loading(tensors, name)
    if kind is None:
        found = f"{name}.{next(iter(tensors))}"
        raise UserError(
            f"{path} holds {found}, which is no adapter of a kind that can be loaded; use another file"
        )
    return kind
