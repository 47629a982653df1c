"""A base model's parts in open files: tools that change weights without running the model work on this.

Every tensor is read when its turn comes, to be compared or to be written again (`publishing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.models.interface.publishing import PartTensors
from sfumato.models.interface.targets import AdapterTarget, every_target

if TYPE_CHECKING:
    from sfumato.models.interface.family import Family


@dataclass(frozen=True)
class Published:
    """The parts that lie in one open file, or in one folder.

    Attributes:
        parts: the tensors of each, by their names in its state.
        modules: the parts themselves, which need no memory: on the meta device, or mapped.
        metadata: the file's own strings.
    """

    parts: Mapping[str, PartTensors]
    modules: Mapping[str, nn.Module]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class PublishedWeight:
    """The weight of one layer that adapters know, in an open file.

    Attributes:
        name: in the state of the target's part.
    """

    target: AdapterTarget
    name: str
    tensor: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.tensor.shape

    def load(self) -> Tensor:
        """Read the weight: (out, ...), in the dtype that the file has."""
        return self.tensor.load()


def parameters_of(family: Family, opened: Published) -> Iterator[tuple[AdapterTarget, str, str]]:
    """Yield each parameter that files may change: its layer, its name there, and its name in the part."""
    for part, module in opened.modules.items():
        paths = {id(layer): path for path, layer in module.named_modules()}
        for target in every_target(family, part, module):
            for name, _ in target.module.named_parameters(recurse=False):
                full = f"{paths[id(target.module)]}.{name}"
                if full in opened.parts[part]:
                    yield target, name, full


def weights_of(family: Family, opened: Published) -> Iterator[PublishedWeight]:
    """Yield the weight of each layer that adapters know, part by part."""
    for part, module in opened.modules.items():
        paths = {id(layer): path for path, layer in module.named_modules()}
        for target in family.adapter_targets(part, module):
            name = f"{paths[id(target.module)]}.weight"
            yield PublishedWeight(target, name, opened.parts[part][name])
