"""The layers of a family under the names that programs give them in adapter files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class LayerNames:
    """One layer of a denoiser.

    Attributes:
        own: what our adapter files call it, without the adapter kind's prefix: `unet_conv_in`.
        published: its dotted path in published checkpoints.
        diffusers: its dotted paths in diffusers, in the order of the rows; several where the layer is fused.
        others: further paths, each with the places in `diffusers` that it stands for.
        ratio: rows of the last of several fused layers, in multiples of the layer's columns. Each other has
            as many rows as the layer has columns.
        swaps_halves: the first and the second half of the rows change places between the two programs.
    """

    own: str
    published: str
    diffusers: tuple[str, ...]
    others: tuple[tuple[str, range], ...] = ()
    ratio: int = 1
    swaps_halves: bool = False

    def widths(self, columns: int) -> tuple[int, ...]:
        """Return the rows of each of several fused layers, as published models have them."""
        return (*[columns] * (len(self.diffusers) - 1), self.ratio * columns)

    def places(self) -> Iterator[tuple[str, Place]]:
        """Yield all paths of the layer and of what is fused in it."""
        every, is_fused = range(len(self.diffusers)), len(self.diffusers) > 1
        yield self.published, Place(self, every)
        for number, path in enumerate(self.diffusers):
            yield path, Place(self, range(number, number + 1), self.swaps_halves)
            if is_fused:
                yield f"{self.published}.{number}", Place(self, range(number, number + 1))
        for path, parts in self.others:
            yield path, Place(self, parts)


@dataclass(frozen=True)
class Place:
    """What a path stands for.

    Attributes:
        parts: which of the fused layers, by their places in `LayerNames.diffusers`.
        swaps_halves: the rows' halves are to be exchanged.
    """

    layer: LayerNames
    parts: range
    swaps_halves: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole layer."""
        return len(self.parts) == len(self.layer.diffusers)


@dataclass(frozen=True)
class TextEncoderNames:
    """A text encoder.

    Attributes:
        own: what our adapter files put before the layer's path: `te1`.
        diffusers: what diffusers' files put there: `text_encoder`.
        kind: of its layers' paths, `clip` or `t5`.
    """

    own: str
    diffusers: str
    kind: str


@dataclass(frozen=True)
class FamilyNames:
    """All that adapter files of a family speak of.

    Attributes:
        family: its name.
        layers: of the denoiser.
        text_encoders: in the order in which programs number them.
        denoiser: what diffusers' files put before the denoiser's layers.
        told_by: the end of the names of layers that tell the family by their number of inputs.
        inputs: what these layers have in published models; empty if they do not tell.
    """

    family: str
    layers: tuple[LayerNames, ...]
    text_encoders: tuple[TextEncoderNames, ...]
    denoiser: str = "unet"
    told_by: tuple[str, ...] = ()
    inputs: tuple[int, ...] = ()

    @cached_property
    def places(self) -> dict[str, Place]:
        """What each path stands for, its dots being underscores."""
        return {flat(path): place for layer in self.layers for path, place in layer.places()}


def flat(path: str) -> str:
    """Return a dotted path as programs without dots have it; several paths may come out the same."""
    return path.replace(".", "_")
