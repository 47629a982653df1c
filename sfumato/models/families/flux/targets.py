"""Which layers of FLUX.1 and its text encoders adapters attach to, under which names and in which order.

Names and order are those of the files that sd-scripts writes: text encoders (`te1` CLIP-L, `te3` T5) by their
module path in transformers 4, the denoiser (`unet`) by its tensor names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from sfumato.models.families.flux.network import Flux
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget, others

_EMBEDDERS = ("img_in", "time_in", "vector_in", "guidance_in", "txt_in")


def denoiser_targets(model: Flux) -> Iterator[AdapterTarget]:
    """Yield the layers of both kinds of block, then the embedders, which are adapted only by name."""
    for index, block in enumerate(model.double_blocks):
        for path, layer in _linears(block):
            kind = path.partition(".")[0]
            yield _denoiser_target(f"double_blocks.{index}.{path}", layer, kind, ("double", index), model)
    for index, block in enumerate(model.single_blocks):
        for path, layer in _linears(block):
            kind = "single_mod" if path.startswith("modulation.") else "single"
            yield _denoiser_target(f"single_blocks.{index}.{path}", layer, kind, ("single", index), model)
    for name in _EMBEDDERS:
        if hasattr(model, name):
            for path, layer in _linears(getattr(model, name)):
                full = f"{name}.{path}" if path else name
                yield AdapterTarget(_joined("unet", full), layer, DENOISER, kind=name, is_default=False)


def clip_targets(model: nn.Module, part: str) -> Iterator[AdapterTarget]:
    """Yield the attention and feed-forward layers of CLIP-L."""
    for index, block in enumerate(model.get_submodule("encoder.layers").children()):
        for path, layer in _linears(block):
            name = _joined("te1", f"text_model.encoder.layers.{index}.{path}")
            yield AdapterTarget(name, layer, part, path.partition(".")[0], ("layer", index))


def t5_targets(model: nn.Module, part: str) -> Iterator[AdapterTarget]:
    """Yield the attention and feed-forward layers of T5."""
    for index, block in enumerate(model.get_submodule("encoder.block").children()):
        for path, layer in _linears(block):
            name = _joined("te3", f"encoder.block.{index}.{path}")
            yield AdapterTarget(name, layer, part, path.split(".")[-2], ("layer", index))


def further_targets(
    model: nn.Module, part: str, known: Collection[nn.Module], owner: str
) -> Iterator[AdapterTarget]:
    """Yield the last layer of the denoiser, norms, and the text encoders' embeddings.

    Args:
        known: layers that are targets already.
        owner: what files put before a layer's path.
    """
    return others(model, known, part, lambda path: _joined(owner, path))


def _denoiser_target(
    path: str, layer: nn.Linear, kind: str, block: tuple[str, int], model: Flux
) -> AdapterTarget:
    shape = model.shape
    qkv = (shape.hidden_size,) * 3
    splits = {"qkv": qkv, "linear1": (*qkv, shape.mlp_hidden)}.get(path.rpartition(".")[2], ())
    return AdapterTarget(_joined("unet", path), layer, DENOISER, kind, block, splits)


def _linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            yield path, layer


def _joined(owner: str, path: str) -> str:
    return f"{owner}_{path}".replace(".", "_")
