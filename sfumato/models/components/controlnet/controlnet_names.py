"""Names of a ControlNet's tensors: diffusers' and those of the files that were published first."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sfumato.models.components.unet import unet_names
from sfumato.models.components.unet.unet_names import Topology

ADDED = "controlnet_"
"""What diffusers' names of tensors begin with that the UNet has not."""

_NUM_HINT_BLOCKS = 6


def diffusers_names(names: Collection[str]) -> dict[str, str]:
    """Return diffusers' name for each name of a file, without prefix; diffusers' own names stay."""
    return unet_names.diffusers_names(names, dict(_added(names)))


def published_names(names: Collection[str]) -> dict[str, str]:
    """Return the name in published files, without prefix, for each of diffusers' names."""
    return unet_names.published_names(names, dict(_added(names)))


def _added(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the published prefix and diffusers' for each layer that the UNet has not."""
    topology = Topology.of(names)
    yield "input_hint_block.0", f"{ADDED}cond_embedding.conv_in"
    for number in range(_NUM_HINT_BLOCKS):
        yield f"input_hint_block.{2 * number + 2}", f"{ADDED}cond_embedding.blocks.{number}"
    yield f"input_hint_block.{2 * _NUM_HINT_BLOCKS + 2}", f"{ADDED}cond_embedding.conv_out"
    for number in range(len(topology.attended) * (topology.resnets + 1)):
        yield f"zero_convs.{number}.0", f"{ADDED}down_blocks.{number}"
    yield "middle_block_out.0", f"{ADDED}mid_block"
