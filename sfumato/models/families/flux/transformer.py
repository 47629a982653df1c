"""Load the transformer from what is published: single files, diffusers' shards, files with a prefix."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import open_tensors, write_tensors
from sfumato.models.components.loading import check_names, fill, shapes_of, sizes_of
from sfumato.models.components.recognise import weight_names
from sfumato.models.families.flux.keys import (
    PREFIX,
    DiffusersSource,
    lazily_to_diffusers,
    table_for,
    to_diffusers,
)
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.published import Place, Published
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
    with open_tensors(path, use_mmap=use_mmap) as file:
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


def save_transformer(
    model: Flux,
    folder: Path,
    dtype: torch.dtype | None,
    tensors: Mapping[str, LazyTensor] | None = None,
) -> None:
    """Write a transformer with diffusers' names and settings; the folder changes file by file.

    Args:
        tensors: the weights under their published names, if they are not the model's own.
    """
    shape = model.shape
    settings = {
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
    theirs = to_diffusers(model.state_dict()) if tensors is None else lazily_to_diffusers(tensors)
    write_tensors(folder / "diffusion_pytorch_model.safetensors", theirs, {"format": "pt"}, dtype)
    with atomic_file(folder / "config.json") as file:
        file.write(json.dumps(settings, indent=2).encode())


def flux_shape(path: Path, found: Shapes, axes_dim: tuple[int, int, int] | None = None) -> FluxShape:
    """Return the sizes of the transformer in a file with these tensors, in either format.

    Raises:
        UserError: the file is no FLUX.1 transformer.
    """
    found = _own_tensors(found)

    def read() -> FluxShape:
        shapes = {key: source.shape(found.__getitem__) for key, source in _sources(found).items()}
        return FluxShape.of(shapes, axes_dim)

    return sizes_of(path, _WHAT, read)


@contextmanager
def open_published(path: Path, *, use_mmap: bool = True) -> Iterator[Published]:
    """Open a transformer's file under the published names, in which it may be or not; see `Published`.

    Whatever else a file holds is kept as it is.
    """
    with open_tensors(path, use_mmap=use_mmap) as file:
        shapes = shapes_of(file)
        with torch.device("meta"):
            model = Flux(flux_shape(path, shapes))
        is_plain = not is_from_diffusers(_own_tensors(shapes))
        prefix = PREFIX if any(name.startswith(PREFIX) for name in shapes) and is_plain else ""
        places = {name: Place(prefix + name) for name in model.state_dict()}
        own = {place.name for place in places.values()}
        table = {} if is_plain else table_for(_own_tensors(shapes))
        tensors = {name: source.lazy(file.lazy) for name, source in table.items()}
        made_of = {name for source in table.values() for name in source.names}
        tensors |= {
            name: file.lazy(name, is_foreign=name not in own) for name in shapes if name not in made_of
        }
        yield Published(tensors, {DENOISER: model}, {DENOISER: places}, file.metadata)


def is_from_diffusers(names: Iterable[str]) -> bool:
    """Return whether these are diffusers' names."""
    return any(name.startswith("transformer_blocks.") for name in names)


def _sources(found: Shapes) -> dict[str, DiffusersSource]:
    """Return what each published tensor is made of in a file with these tensors."""
    if is_from_diffusers(found):
        return table_for(found)
    return {name.removeprefix(PREFIX): DiffusersSource((name,)) for name in found}


def _own_tensors(found: Shapes) -> Shapes:
    """Leave out what else a file with prefixes holds, and tensors that only say something of the model."""
    prefixed = {name: shape for name, shape in found.items() if name.startswith(PREFIX)}
    weights = weight_names(found)
    return prefixed or {name: shape for name, shape in found.items() if name in weights}
