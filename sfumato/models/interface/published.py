"""A model's file as it is published, open: what it holds, and where the weights of each part lie in it.

Tools that change weights without running the model work on this: they copy a file tensor by tensor, and a
changed weight is made when its turn to be written comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sfumato.checkpoints.lazy import LazyTensor

if TYPE_CHECKING:
    from sfumato.models.interface.family import Family
    from sfumato.models.interface.targets import AdapterTarget


@dataclass(frozen=True)
class Place:
    """Where a published file holds a weight of a model.

    Attributes:
        name: of the tensor.
        start: the weight's first row in it; what several layers share is joined along the rows.
    """

    name: str
    start: int = 0


@dataclass(frozen=True)
class Published:
    """One open file, or what a folder's files make when they are written as one.

    Attributes:
        tensors: what it holds, under its published names; read or made when written.
        modules: the parts that lie in it, which need no memory: on the meta device, or mapped.
        places: for each part, where the weights of its layers lie, by their names in its state.
        metadata: the file's own strings.
    """

    tensors: Mapping[str, LazyTensor]
    modules: Mapping[str, nn.Module]
    places: Mapping[str, Mapping[str, Place]]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class PublishedWeight:
    """The weight of one layer that adapters know, in an open file.

    Attributes:
        name: of the tensor that it lies in.
        start: its first row there.
    """

    target: AdapterTarget
    name: str
    tensor: LazyTensor
    start: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape in the model; the file may have it flat, or with a kernel of 1x1."""
        return tuple(self.target.module.get_parameter("weight").shape)

    def load(self) -> Tensor:
        """Read the weight: (out, ...), in the format and the shape that the file has."""
        return self.tensor.load()[self.start : self.start + self.shape[0]]


def weights_of(family: Family, opened: Published) -> Iterator[PublishedWeight]:
    """Yield the weight of each layer that adapters know, part by part."""
    for part, module in opened.modules.items():
        paths = {id(layer): path for path, layer in module.named_modules()}
        for target in family.adapter_targets(part, module):
            place = opened.places[part][f"{paths[id(target.module)]}.weight"]
            yield PublishedWeight(target, place.name, opened.tensors[place.name], place.start)
