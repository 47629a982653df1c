"""Load a transformer from what is published: single files, diffusers' shards, files with a prefix."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import open_tensors
from sfumato.models.components.dit.diffusers_source import DiffusersSource, Sources
from sfumato.models.components.loading import check_names, fill, shapes_of, sizes_of
from sfumato.models.components.model_files import open_part, plain
from sfumato.models.components.part_prefixes import DENOISER, prefix_in
from sfumato.models.components.recognise import weight_names
from sfumato.models.components.tensor_views import Shapes
from sfumato.nn.precision import linear_weights

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class TransformerFormat(Generic[Model]):
    """How one family's transformers are published.

    Attributes:
        what: the model, for messages.
        blocks: what the names of its repeated blocks begin with.
        table: returns what each tensor is made of in a file with these names of diffusers.
        build: returns a model of these sizes, by published names.
        undotted: tensors whose names have no dot; other such names are remarks of other programs.
    """

    what: str
    blocks: tuple[str, ...]
    table: Callable[[Collection[str]], Sources]
    build: Callable[[Shapes], Model]
    undotted: tuple[str, ...] = ()

    def load(self, path: Path, dtype: torch.dtype, device: torch.device, *, use_mmap: bool = True) -> Model:
        """Load a transformer, frozen and in eval mode.

        Args:
            path: a file with the published names, or a file or folder of shards with diffusers' names.
            dtype: of all weights; in a storage-only format it is the blocks' Linear weights that are
                stored so.
            use_mmap: as `open_tensors` has it.

        Raises:
            UserError: the file is missing or truncated, or is another model.
        """
        with open_part(path, DENOISER, use_mmap=use_mmap) as file:
            found = self._own_tensors(shapes_of(file))
            sources, model = self._sources(found), self._built(path, found)
            wanted = {
                name for key in model.state_dict() for name in sources.get(key, DiffusersSource((key,))).names
            }
            check_names(path, self.what, wanted, found)
            stored = {name for name in linear_weights(model) if name.startswith(self.blocks)}
            fill(model, path, lambda name: sources[name].join(file.get), dtype, device, stored)
        return model

    @contextmanager
    def open(self, path: Path, *, use_mmap: bool = True) -> Iterator[OpenTransformer[Model]]:
        """Open a transformer's file, in any of the namings that `load` knows.

        Raises:
            UserError: as `load` has it.
        """
        with open_tensors(path, use_mmap=use_mmap) as file:
            before = prefix_in(file.keys(), DENOISER)
            part = plain(file.below(before))
            shapes = shapes_of(part)
            model, own = self._built(path, shapes), self._sources(self._own_tensors(shapes))
            sources = sizes_of(path, self.what, lambda: {name: own[name] for name in model.state_dict()})
            tensors = {name: source.lazy(part.lazy) for name, source in sources.items()}
            used = {before + name for source in sources.values() for name in source.names}
            others = {name: file.lazy(name, is_foreign=True) for name in file.keys() if name not in used}  # noqa: SIM118 - a reader is no mapping
            prefix = "" if is_from_diffusers(shapes) else before
            yield OpenTransformer(model, tensors, prefix, others, file.metadata)

    def published_shapes(self, found: Shapes) -> dict[str, tuple[int, ...]]:
        """Return shapes by published names, of a file in either format, without prefix.

        Raises:
            KeyError: a tensor is missing.
        """
        found = self._own_tensors(found)
        return {key: source.shape(found.__getitem__) for key, source in self._sources(found).items()}

    def _built(self, path: Path, found: Shapes) -> Model:
        """Return the model with these tensors on the meta device."""
        with torch.device("meta"):
            return sizes_of(path, self.what, lambda: self.build(self.published_shapes(found)))

    def _own_tensors(self, found: Shapes) -> Shapes:
        """Leave out tensors that only say something of the model."""
        weights = weight_names(found) | {*self.undotted}
        return {name: shape for name, shape in found.items() if name in weights}

    def _sources(self, found: Shapes) -> Sources:
        """Return what each published tensor is made of in a file with these tensors."""
        if is_from_diffusers(found):
            return self.table(found)
        return {name: DiffusersSource((name,)) for name in found}


@dataclass(frozen=True)
class OpenTransformer(Generic[Model]):
    """A transformer's open file, whichever names it has.

    Attributes:
        model: on the meta device.
        tensors: by their names in the model's state.
        prefix: what the file puts before these names; nothing if it has diffusers'.
        others: what else the file holds, by its name there.
    """

    model: Model
    tensors: Mapping[str, LazyTensor]
    prefix: str
    others: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]


def is_from_diffusers(names: Iterable[str]) -> bool:
    """Return whether these are diffusers' names."""
    return any(name.startswith("transformer_blocks.") for name in names)
