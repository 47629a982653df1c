"""ControlNet-LLLite on a whole denoiser: attached to its layers, shown a control image, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfumato.adapters.lllite.layer import LLLiteLayer, LLLiteShape
from sfumato.checkpoints.tensors import open_tensors
from sfumato.errors import UserError
from sfumato.models.components.loading import check_names, shapes_of, sizes_of
from sfumato.models.components.recognise import describe
from sfumato.models.interface.targets import AdapterTarget, ControlledLayer

PREFIX = "lllite_"
WHAT = "a ControlNet-LLLite for this model"


class LLLite(nn.Module):
    """The networks of all layers that follow the control image.

    Args:
        layers: by the layer's name in files, with its prefix.

    Attributes:
        strength: what is added is multiplied by this.
    """

    def __init__(self, layers: Mapping[str, LLLiteLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.strength = 1.0
        self._read: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    @property
    def size_multiple(self) -> int:
        """In pixels, of which the sides of control images must be multiples: that many are read as one."""
        return max(layer.reduction for layer in self._each())

    def attach(self, modules: Mapping[str, nn.Linear]) -> None:
        """Change a denoiser's layers, by their names in files; of several networks the last is first."""
        for name in self.layers:
            hook = self._hook(name)
            self._hooks.append(modules[name].register_forward_pre_hook(hook, prepend=True))

    def detach(self) -> None:
        """Leave the denoiser as it was."""
        while self._hooks:
            self._hooks.pop().remove()

    @contextmanager
    def showing(self, image: Tensor) -> Iterator[None]:
        """Follow a control image within the block; see `show`."""
        self.show(image)
        try:
            yield
        finally:
            self.hide()

    def show(self, image: Tensor) -> None:
        """Follow a control image from now on.

        Args:
            image: (N, 3, H, W) in [-1, 1]; of a batch of B rows each N rows are for these images, in turn.

        Raises:
            UserError: its sides are no multiples of what is read as one.
        """
        multiple, (height, width) = self.size_multiple, image.shape[-2:]
        if height % multiple or width % multiple:
            raise UserError(
                f"a control image is {width}x{height}; ControlNet-LLLite reads {multiple}x{multiple} pixels "
                f"as one, so let all sizes be multiples of {multiple}"
            )
        self._read = {name: layer.read(image) for name, layer in zip(self.layers, self._each(), strict=True)}

    def hide(self) -> None:
        """Follow no control image: the denoiser computes what it did before."""
        self._read = {}

    def tensors(self) -> dict[str, Tensor]:
        """Return all weights, live, by their names in files."""
        return dict(self.layers.state_dict(keep_vars=True).items())

    def _each(self) -> Iterator[LLLiteLayer]:
        for layer in self.layers.values():
            assert isinstance(layer, LLLiteLayer)
            yield layer

    def _hook(self, name: str) -> Callable[[nn.Module, Any], Any]:
        layer = self.layers[name]

        def add(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            read = self._read.get(name)
            if read is None or not self.strength:
                return None
            inputs, *others = given
            read = read.repeat(len(inputs) // len(read), 1, 1)
            return inputs + self.strength * layer(inputs, read), *others

        return add


def attachable(targets: Iterable[AdapterTarget]) -> dict[str, nn.Linear]:
    """Return all layers of a denoiser that files may be for, by their names in these."""
    return {PREFIX + target.name: target.module for target in targets if isinstance(target.module, nn.Linear)}


def begin(targets: Iterable[ControlledLayer], embedding: int, width: int, dropout: float = 0.0) -> LLLite:
    """Return a network that changes nothing yet, with numbers from torch's generator.

    Args:
        targets: the layers that are to follow control images.
        embedding, width, dropout: as `LLLiteLayer` and `LLLiteShape` have them.
    """
    layers = {}
    for target in targets:
        shape = LLLiteShape(target.module.in_features, target.depth, embedding, width)
        layers[PREFIX + target.name] = LLLiteLayer(shape, dropout)
    return LLLite(layers)


def load(path: Path, modules: Mapping[str, nn.Linear], dropout: float = 0.0) -> LLLite:
    """Load a network from its file, which says which layers it is for.

    Args:
        modules: all layers of the denoiser, by their names in files.

    Raises:
        UserError: it is no such file, or for another model.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give {WHAT}")
    with open_tensors(path) as file:
        shapes = shapes_of(file)
        by_layer = _by_layer(shapes)
        if not by_layer:
            raise UserError(f"{path}: {describe(shapes)}; give {WHAT}")
        sizes = sizes_of(path, WHAT, lambda: {name: LLLiteShape.of(own) for name, own in by_layer.items()})
        _check(path, sizes, modules)
        network = LLLite({name: LLLiteLayer(shape, dropout) for name, shape in sizes.items()})
        check_names(path, WHAT, set(network.tensors()), shapes)
        with torch.no_grad():
            for name, tensor in network.tensors().items():
                tensor.copy_(file.get(name))
    return network


def _by_layer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, tensor = name.partition(".")
        if layer.startswith(PREFIX):
            found.setdefault(layer, {})[tensor] = shape
    return found


def _check(path: Path, sizes: Mapping[str, LLLiteShape], modules: Mapping[str, nn.Linear]) -> None:
    """Raise UserError if the model has not the layers that a file is for."""
    for name, shape in sizes.items():
        if name not in modules:
            raise UserError(f"{path} is for a layer that this model has not, {name}; give {WHAT}")
        if modules[name].in_features != shape.inputs:
            raise UserError(
                f"{path} is for a model of another size: {name} reads {shape.inputs} channels there and "
                f"{modules[name].in_features} here; give {WHAT}"
            )
