"""Load the transformer from what is published: single files, diffusers' shards, files with a prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import open_tensors
from sfumato.models.components.loading import check_names, fill, shapes_of, sizes_of
from sfumato.models.components.model_files import open_part, plain
from sfumato.models.components.part_prefixes import DENOISER, prefix_in
from sfumato.models.components.recognise import weight_names
from sfumato.models.families.flux.keys import DiffusersSource, table_for
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.nn.precision import linear_weights

Shapes = Mapping[str, tuple[int, ...]]

_WHAT = "a FLUX.1 transformer"
_BLOCKS = ("double_blocks.", "single_blocks.")


def load_transformer(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    use_mmap: bool = True,
    axes_dim: tuple[int, int, int] | None = None,
) -> Flux:
    """Load a FLUX.1 transformer, frozen and in eval mode.

    Args:
        path: a file with the published names, or a file or folder of shards with diffusers' names.
        dtype: of all weights; in a storage-only format it is the blocks' Linear weights that are stored so.
        use_mmap: as `open_tensors` has it.
        axes_dim: as `FluxShape.of` has it.

    Raises:
        UserError: the file is missing or truncated, or is another model.
    """
    with open_part(path, DENOISER, use_mmap=use_mmap) as file:
        found = _own_tensors(shapes_of(file))
        sources = _sources(found)
        shape = flux_shape(path, found, axes_dim)
        with torch.device("meta"):
            model = Flux(shape)
        wanted = {
            name for key in model.state_dict() for name in sources.get(key, DiffusersSource((key,))).names
        }
        check_names(path, _WHAT, wanted, found)
        stored = {name for name in linear_weights(model) if name.startswith(_BLOCKS)}
        fill(model, path, lambda name: sources[name].join(file.get), dtype, device, stored)
    return model


def folder_settings(shape: FluxShape) -> dict[str, object]:
    """Return the settings by which diffusers builds a transformer of these sizes."""
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": sum(shape.axes_dim),
        "axes_dims_rope": list(shape.axes_dim),
        "guidance_embeds": shape.guidance,
        "in_channels": shape.in_channels,
        "joint_attention_dim": shape.text_width,
        "num_attention_heads": shape.num_heads,
        "num_layers": shape.depth,
        "num_single_layers": shape.depth_single,
        "patch_size": 1,
        "pooled_projection_dim": shape.pooled_width,
    }


def flux_shape(path: Path, found: Shapes, axes_dim: tuple[int, int, int] | None = None) -> FluxShape:
    """Return the sizes of the transformer with these tensors, in either format, without prefix.

    Raises:
        UserError: the file is no FLUX.1 transformer.
    """
    found = _own_tensors(found)

    def read() -> FluxShape:
        shapes = {key: source.shape(found.__getitem__) for key, source in _sources(found).items()}
        return FluxShape.of(shapes, axes_dim)

    return sizes_of(path, _WHAT, read)


@dataclass(frozen=True)
class OpenTransformer:
    """A transformer's open file, whichever names it has.

    Attributes:
        model: on the meta device.
        tensors: by their names in the model's state.
        prefix: what the file puts before these names; nothing if it has diffusers'.
        others: what else the file holds, by its name there.
    """

    model: Flux
    tensors: Mapping[str, LazyTensor]
    prefix: str
    others: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]


@contextmanager
def open_transformer(path: Path, *, use_mmap: bool = True) -> Iterator[OpenTransformer]:
    """Open a transformer's file, in any of the namings that `load_transformer` knows.

    Raises:
        UserError: as `load_transformer` has it.
    """
    with open_tensors(path, use_mmap=use_mmap) as file:
        before = prefix_in(file.keys(), DENOISER)
        part = plain(file.below(before))
        shapes = shapes_of(part)
        with torch.device("meta"):
            model = Flux(flux_shape(path, shapes))
        own = _sources(_own_tensors(shapes))
        sources = sizes_of(path, _WHAT, lambda: {name: own[name] for name in model.state_dict()})
        tensors = {name: source.lazy(part.lazy) for name, source in sources.items()}
        used = {before + name for source in sources.values() for name in source.names}
        others = {name: file.lazy(name, is_foreign=True) for name in file.keys() if name not in used}  # noqa: SIM118 - a reader is no mapping
        prefix = "" if is_from_diffusers(shapes) else before
        yield OpenTransformer(model, tensors, prefix, others, file.metadata)


def is_from_diffusers(names: Iterable[str]) -> bool:
    """Return whether these are diffusers' names."""
    return any(name.startswith("transformer_blocks.") for name in names)


def _sources(found: Shapes) -> dict[str, DiffusersSource]:
    """Return what each published tensor is made of in a file with these tensors."""
    if is_from_diffusers(found):
        return table_for(found)
    return {name: DiffusersSource((name,)) for name in found}


def _own_tensors(found: Shapes) -> Shapes:
    """Leave out tensors that only say something of the model."""
    weights = weight_names(found)
    return {name: shape for name, shape in found.items() if name in weights}
