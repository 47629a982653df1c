"""The layers of a UNet that adapters know: their names in files, kinds and blocks, and their order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from sfumato.models.components.unet.unet_names import published_names, published_names_of_modules
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget, ControlledLayer, others

_ADAPTED = re.compile(r"\.(attentions|resnets|downsamplers|upsamplers)\.\d+\.")
_TRANSFORMER = re.compile(r"(.*\.transformer_blocks\.\d+)\.(attn1|attn2|ff)\.")
_LEVEL = re.compile(r"down_blocks\.\d+")
_CONTROLLED = re.compile(r"(?:down_blocks\.(\d+)|mid_block)\.att.*\.(?:attn1\.to_[qkv]|attn2\.to_q)$")
_ATTENTION = re.compile(r"\.attn\d\.")


@dataclass(frozen=True)
class Numbering:
    """How adapters' options count the blocks of one part of a UNet.

    Attributes:
        kind: what they call these blocks.
        first: number of the first of them.
        is_one: whether all of them count as one.
    """

    kind: str
    first: int
    is_one: bool = False


def targets(
    model: nn.Module, numbering: Mapping[str, Numbering], *, has_published_names: bool
) -> Iterator[AdapterTarget]:
    """Yield the layers that adapters know: those of transformers and, only when asked for, of all else.

    Args:
        numbering: of the blocks of each part of a checkpoint's UNet.
        has_published_names: whether adapter files name layers as checkpoints do; otherwise as diffusers does.
    """
    layers = _adapted(model)
    published = published_names_of_modules(model, layers)
    for path in _ordered(list(layers), published if has_published_names else None):
        layer = layers[path]
        name = f"unet_{published[path] if has_published_names else path}".replace(".", "_")
        is_default = ".attentions." in path
        yield AdapterTarget(
            name,
            layer,
            DENOISER,
            _kind(path, layer),
            _block(published[path], numbering),
            is_default=is_default,
        )


def controlled_layers(
    model: nn.Module, numbering: Mapping[str, Numbering], *, has_published_names: bool
) -> Iterator[ControlledLayer]:
    """Yield what attention reads on the way down and in the middle, but for the text.

    Args:
        numbering, has_published_names: as `targets` has them.
    """
    paths = {layer: path for path, layer in model.named_modules()}
    num_levels = len([path for path in paths.values() if _LEVEL.fullmatch(path)])
    for target in targets(model, numbering, has_published_names=has_published_names):
        match = _CONTROLLED.match(paths[target.module])
        if match and isinstance(target.module, nn.Linear):
            yield ControlledLayer(target.name, target.module, int(match[1]) + 1 if match[1] else num_levels)


def further_targets(model: nn.Module, *, has_published_names: bool) -> Iterator[AdapterTarget]:
    """Yield the first and last convolutions, the embeddings of time and sizes, and all norms."""
    published = published_names_of_modules(model, dict(model.named_modules()))

    def name(path: str) -> str:
        return f"unet_{published[path] if has_published_names else path}".replace(".", "_")

    return others(model, _adapted(model).values(), DENOISER, name)


def block_numbers(model: nn.Module, numbering: Mapping[str, Numbering], *, last: int) -> dict[str, int]:
    """Return the number of the block that each of a UNet's weights belongs to, by the weight's name.

    Args:
        numbering: as `targets` has it.
        last: number of the output's; the embeddings of time and sizes are 0.
    """
    published = published_names(model.state_dict())
    ends = {"time_embed": 0, "label_emb": 0, "out": last}

    def number(path: str) -> int:
        part = path.partition(".")[0]
        return ends[part] if part in ends else _block(path, numbering)[1]

    return {name: number(path) for name, path in published.items()}


def _adapted(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that adapters can be trained on, by their paths."""
    return {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and _ADAPTED.search(path)
    }


def _block(path: str, numbering: Mapping[str, Numbering]) -> tuple[str, int]:
    part, number = path.split(".")[:2]
    found = numbering[part]
    return found.kind, found.first + (0 if found.is_one else int(number))


def _ordered(paths: list[str], published: Mapping[str, str] | None) -> list[str]:
    """Return module paths in the order in which sd-scripts adapts them: seeds and optimizer states follow it.

    Within a transformer block the feed-forward layers come between the attentions.
    """
    indices, starts = {path: index for index, path in enumerate(paths)}, dict[str, int]()

    def place(path: str) -> tuple[tuple[str, int, int], int, int]:
        index = indices[path]
        block = _TRANSFORMER.match(path)
        outer = _place(published[path]) if published else ("", 0, 0)
        if block is None:
            return outer, index, 0
        return outer, starts.setdefault(block[1], index), ("attn1", "ff", "attn2").index(block[2])

    return sorted(paths, key=place)


def _place(path: str) -> tuple[str, int, int]:
    """Return what sorts a checkpoint's paths as its modules lie: input, middle and output blocks."""
    part, *numbers = path.split(".")[:3]
    return part, int(numbers[0]), int(numbers[1]) if numbers[1].isdigit() else 0


def _kind(path: str, layer: nn.Module) -> str:
    if _ATTENTION.search(path):
        return "attn"
    if not isinstance(layer, nn.Conv2d):
        return "linear"
    return f"conv{layer.kernel_size[0]}x{layer.kernel_size[1]}"
