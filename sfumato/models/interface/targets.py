"""The layers that adapters attach to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn


@dataclass(frozen=True)
class AdapterTarget:
    """One layer that an adapter may attach to.

    Attributes:
        name: the layer's part of an adapter file's key, after the adapter kind's own prefix:
            `unet_double_blocks_0_img_attn_qkv` becomes `lora_unet_double_blocks_0_img_attn_qkv`.
        module: the Linear or Conv2d itself; of further targets, any layer with parameters of its own.
        part: the part it belongs to ("denoiser" or a text encoder's name).
        kind: what sort of layer it is within its family (`img_attn`, `single_mod` ...), for per-kind ranks.
        block: (kind of block, index), or None outside the repeated blocks.
        splits: output widths of the projections fused in this layer; empty for an ordinary layer.
        is_default: whether it is adapted when nobody asks for it by name.
    """

    name: str
    module: nn.Module
    part: str
    kind: str = ""
    block: tuple[str, int] | None = None
    splits: tuple[int, ...] = ()
    is_default: bool = True


@dataclass(frozen=True)
class ControlledLayer:
    """One layer whose input ControlNet-LLLite adds to.

    Attributes:
        name: of an `AdapterTarget`.
        depth: how often the latents were halved before it, counted from 1 for not yet.
    """

    name: str
    module: nn.Linear
    depth: int


@runtime_checkable
class TakesLLLite(Protocol):
    """A family whose denoiser ControlNet-LLLite is made for."""

    def controlled_layers(self, model: nn.Module) -> Iterator[ControlledLayer]:
        """Yield the layers of the denoiser that follow control images."""
        ...


class HasTargets(Protocol):
    """A family, as far as adapters of our kinds attach to its layers."""

    def adapter_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers of a part that adapters can be trained on."""
        ...


@runtime_checkable
class HasFurtherTargets(Protocol):
    """A family that knows what files call the layers that no adapter of ours is trained on."""

    def further_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield norms, embeddings, and the first and last layers of a part, which files may change."""
        ...


def every_target(family: HasTargets, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
    """Yield all layers of a part that a file may change, those first that adapters can be trained on."""
    yield from family.adapter_targets(part, model)
    if isinstance(family, HasFurtherTargets):
        yield from family.further_targets(part, model)


def others(
    model: nn.Module, known: Collection[nn.Module], part: str, name: Callable[[str], str]
) -> Iterator[AdapterTarget]:
    """Yield the layers with parameters of their own that are not known, in the model's order.

    Args:
        known: layers that are targets already.
        name: returns a layer's name in files, by its path in the model.
    """
    taken = set(known)
    for path, layer in model.named_modules():
        if layer not in taken and any(True for _ in layer.parameters(recurse=False)):
            yield AdapterTarget(name(path), layer, part, is_default=False)
