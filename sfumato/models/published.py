"""A model's file as it is published, open: what it holds, and where the weights of each part lie in it.

Tools that change weights without running the model work on this: they copy a file tensor by tensor, and a
changed weight is made when its turn to be written comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from sfumato.checkpoints.tensors import LazyTensor


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
