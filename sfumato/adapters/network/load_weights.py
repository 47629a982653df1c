"""Fill adapted layers with the weights of a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfumato.adapters.layers.layer import AdapterLayer, as_module
from sfumato.errors import UserError
from sfumato.log import counted

logger = logging.getLogger(__name__)


def fill(layers: Sequence[AdapterLayer], path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Load the layers that a file and a network share; return one line that says how many.

    Layers that only one of the two has are counted in a warning: those of the file would be lost in the
    next save, those of the network start untrained.

    Args:
        path: the file, for messages.
        tensors: as `read_adapter` returns them.

    Raises:
        UserError: nothing in the file fits, or shapes differ.
    """
    known = {layer.name: as_module(layer) for layer in layers}
    shared = [name for name in tensors if name in known]
    if not shared:
        what = f"none of the {len(known)} adapted layers" if known else "no layer of this model"
        raise UserError(f"{path} fits {what}; {_difference(tensors, known)}")
    for name in shared:
        _load_layer(path, name, known[name], tensors[name])
    _warn_of_rest(
        path, [name for name in known if name not in tensors], "not in the file, and untrained at the start"
    )
    _warn_of_rest(path, [name for name in tensors if name not in known], "not in the network, and lost")
    return f"{path}: {len(shared)} of {counted(len(known), 'layer')} loaded"


def _load_layer(path: Path, name: str, layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = layer.state_dict()
    if tensors.keys() != own.keys():
        found, expected = ", ".join(sorted(tensors)), ", ".join(sorted(own))
        raise UserError(f"{path}: {name} holds {found} instead of {expected}; is it another kind of adapter?")
    fitting = {key: _fit(tensors[key], value) for key, value in own.items()}
    for key, value in fitting.items():
        if value.shape != own[key].shape:
            _refuse_control(path, name, value, own[key])
            raise UserError(
                f"{path}: {name}.{key} is {_shape(value)}, this model and rank need "
                f"{_shape(own[key])}; use the file's rank (--dim_from_weights), or another file"
            )
    for key, buffer in layer.named_buffers():
        if key in own and fitting[key].is_floating_point() and not buffer.is_floating_point():
            layer.register_buffer(key, fitting[key].float())  # an alpha of 0.5 must not become the integer 0
    layer.load_state_dict(fitting)


def _refuse_control(path: Path, name: str, value: Tensor, own: Tensor) -> None:
    """Raise UserError if a layer takes in more than the model has: the channels of a control image."""
    if (
        value.dim() == own.dim() == 2
        and value.shape[0] == own.shape[0]
        and value.shape[1] == 2 * own.shape[1]
    ):
        raise UserError(
            f"{path}: {name} takes {value.shape[1]} inputs where this model takes {own.shape[1]}: it is a "
            "control LoRA, for models that are given a control image beside the noise; use another file"
        )


def _fit(value: Tensor, own: Tensor) -> Tensor:
    """Add or drop the 1x1 kernel of a layer that is a convolution in one program and a Linear in another."""
    same = value.dim() != own.dim() and [n for n in value.shape if n > 1] == [n for n in own.shape if n > 1]
    return value.reshape(own.shape) if same else value


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _difference(tensors: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    theirs, ours = next(iter(tensors), "nothing"), next(iter(known), "")
    found = f"it holds {theirs} ..." + (f", the network {ours} ..." if ours else "")
    return f"{found}; is it for another model?"


def _warn_of_rest(path: Path, names: Sequence[str], what: str) -> None:
    if names:
        logger.warning("%s: %s (%s ...) %s", path, counted(len(names), "layer"), names[0], what)
