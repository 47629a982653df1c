"""Names of a UNet's tensors: diffusers' and those of published files.

Checkpoints number the blocks of each half through (`input_blocks.4.1`), diffusers counts per level
(`down_blocks.1.attentions.0`). One table of prefixes, generated from the topology, translates both ways.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, takewhile

from torch import nn

_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_NONE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Topology:
    """Which blocks there are.

    Attributes:
        resnets: residual blocks of each level on the way down; one more on the way up.
        attended: for each level, finest first, whether transformers follow its residual blocks.
    """

    resnets: int
    attended: tuple[bool, ...]

    @classmethod
    def of(cls, names: Collection[str]) -> Topology:
        """Read the topology off a file's names, in either naming."""
        if "conv_in.weight" in names:
            levels = num_existing(names, "down_blocks.{}.resnets.0.conv1.weight")
            resnets = num_existing(names, "down_blocks.0.resnets.{}.conv1.weight")
            return cls(resnets, tuple(_has(names, f"down_blocks.{i}.attentions.0.") for i in range(levels)))
        blocks = [int(m[1]) for name in names if (m := re.match(r"input_blocks\.(\d+)\.", name))]
        halvings = sorted(
            int(m[1]) for n in names if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", n))
        )
        step = halvings[0] if halvings else max(blocks, default=0) + 1
        starts = [1, *(halving + 1 for halving in halvings)]
        return cls(step - 1, tuple(_has(names, f"input_blocks.{start}.1.") for start in starts))

    def table(self) -> dict[str, str]:
        """Return diffusers' prefix for each prefix of a checkpoint's names."""
        return dict(self._pairs())

    def _pairs(self) -> Iterator[tuple[str, str]]:
        yield from _ENDS.items()
        levels, step = len(self.attended), self.resnets + 1
        for level, has_attention in enumerate(self.attended):
            for number in range(self.resnets):
                theirs, ours = f"input_blocks.{1 + step * level + number}", f"down_blocks.{level}"
                yield f"{theirs}.0", f"{ours}.resnets.{number}"
                if has_attention:
                    yield f"{theirs}.1", f"{ours}.attentions.{number}"
            if level < levels - 1:
                yield f"input_blocks.{step * (level + 1)}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
        for level, has_attention in enumerate(self.attended[::-1]):
            ours = f"up_blocks.{level}"
            for number in range(step):
                theirs = f"output_blocks.{step * level + number}"
                yield f"{theirs}.0", f"{ours}.resnets.{number}"
                if has_attention:
                    yield f"{theirs}.1", f"{ours}.attentions.{number}"
            if level < levels - 1:
                place = 2 if has_attention else 1
                yield f"output_blocks.{step * level + self.resnets}.{place}.conv", f"{ours}.upsamplers.0.conv"


def diffusers_names(names: Collection[str], further: Mapping[str, str] = _NONE) -> dict[str, str]:
    """Return diffusers' name for each name of a file, without prefix; diffusers' own names stay.

    Args:
        further: diffusers' prefix for each of a file's that a UNet has not.
    """
    if "conv_in.weight" in names:
        return {name: name for name in names}
    table = {**Topology.of(names).table(), **further}
    return {name: _translated(name, table, _RESNET) for name in names}


def published_names(names: Collection[str], further: Mapping[str, str] = _NONE) -> dict[str, str]:
    """Return the checkpoint's name, without prefix, for each of diffusers' names.

    Args:
        further: as `diffusers_names` has it.
    """
    table, resnet = _to_published(names)
    table |= {ours: theirs for theirs, ours in further.items()}
    return {name: _translated(name, table, resnet) for name in names}


def published_names_of_modules(model: nn.Module, paths: Collection[str]) -> dict[str, str]:
    """Return the checkpoint's path for each of diffusers' module paths."""
    table, resnet = _to_published(model.state_dict())
    return {path: _translated(path, table, resnet) for path in paths}


def within_resnets() -> dict[str, str]:
    """Return the checkpoint's name for each of diffusers' names of layers within residual blocks."""
    return {ours: theirs for theirs, ours in _RESNET.items()}


def num_existing(names: Collection[str], pattern: str) -> int:
    """Return how many of `pattern` filled with 0, 1, 2 ... are among these names."""
    return len(list(takewhile(lambda name: name in names, map(pattern.format, count()))))


def _has(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _to_published(names: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tables from diffusers' prefixes to a checkpoint's: of blocks, and within residual blocks."""
    blocks = {ours: theirs for theirs, ours in Topology.of(names).table().items()}
    return blocks, within_resnets()


def _translated(name: str, table: Mapping[str, str], resnet: Mapping[str, str]) -> str:
    """Replace the longest prefix that is known, and what follows it within a residual block."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if prefix in table:
            rest = ".".join(parts[end:])
            inner = next((old for old in resnet if rest == old or rest.startswith(f"{old}.")), None)
            if inner is not None:
                rest = resnet[inner] + rest.removeprefix(inner)
            return f"{table[prefix]}.{rest}".removesuffix(".")
    return name
