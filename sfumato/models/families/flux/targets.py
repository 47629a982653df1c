"""Which layers of FLUX.1 adapters attach to, under which names and in which order.

Names and order are those of the files that sd-scripts writes: the denoiser's (`unet`) are its tensor names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from sfumato.models.components.dit.targets import joined, linears
from sfumato.models.families.flux.network import Flux
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget, others

_EMBEDDERS = ("img_in", "time_in", "vector_in", "guidance_in", "txt_in")


def denoiser_targets(model: Flux) -> Iterator[AdapterTarget]:
    """Yield the layers of both kinds of block, then the embedders, which are adapted only by name."""
    for index, block in enumerate(model.double_blocks):
        for path, layer in linears(block):
            kind = path.partition(".")[0]
            yield _denoiser_target(f"double_blocks.{index}.{path}", layer, kind, ("double", index), model)
    for index, block in enumerate(model.single_blocks):
        for path, layer in linears(block):
            kind = "single_mod" if path.startswith("modulation.") else "single"
            yield _denoiser_target(f"single_blocks.{index}.{path}", layer, kind, ("single", index), model)
    for name in _EMBEDDERS:
        if hasattr(model, name):
            for path, layer in linears(getattr(model, name)):
                full = f"{name}.{path}" if path else name
                yield AdapterTarget(joined("unet", full), layer, DENOISER, kind=name, is_default=False)


def further_targets(
    model: nn.Module, part: str, known: Collection[nn.Module], owner: str
) -> Iterator[AdapterTarget]:
    """Yield the last layer of the denoiser, norms, and the text encoders' embeddings.

    Args:
        known: layers that are targets already.
        owner: what files put before a layer's path.
    """
    return others(model, known, part, lambda path: joined(owner, path))


def _denoiser_target(
    path: str, layer: nn.Module, kind: str, block: tuple[str, int], model: Flux
) -> AdapterTarget:
    shape = model.shape
    qkv = (shape.hidden_size,) * 3
    splits = {"qkv": qkv, "linear1": (*qkv, shape.mlp_hidden)}.get(path.rpartition(".")[2], ())
    return AdapterTarget(joined("unet", path), layer, DENOISER, kind, block, splits)
