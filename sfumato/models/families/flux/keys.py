"""FLUX tensor names: the published file's (ours) and those of diffusers' FluxTransformer2DModel.

diffusers splits the fused projections and puts the halves of the last modulation the other way round:
the published file has (shift, scale), diffusers (scale, shift).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sfumato.checkpoints.lazy import LazyTensor

_EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_GUIDANCE = {
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}
_LAST_MODULATION = ("final_layer.adaLN_modulation.1", "norm_out.linear")
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mod.lin": "norm1_context.linear",
    "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE = {
    "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
    "linear2": "proj_out",
    "modulation.lin": "norm.linear",
}
_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}


@dataclass(frozen=True)
class DiffusersSource:
    """Where one of our tensors comes from: other tensors, joined along their first dimension."""

    names: tuple[str, ...]
    swaps_halves: bool = False

    def join(self, get: Callable[[str], Tensor]) -> Tensor:
        """Make our tensor of theirs."""
        parts = [get(name) for name in self.names]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return _with_halves_swapped(whole) if self.swaps_halves else whole

    def shape(self, shape_of: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
        """Return the shape of our tensor."""
        shapes = [shape_of(name) for name in self.names]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def lazy(self, open_: Callable[[str], LazyTensor]) -> LazyTensor:
        """Return our tensor, made of theirs when it is written."""
        whole = LazyTensor.joined([open_(name) for name in self.names])
        return whole.changed(_with_halves_swapped) if self.swaps_halves else whole

    def split(self, whole: Tensor, hidden: int) -> dict[str, Tensor]:
        """Make their tensors of ours: `hidden` rows for each but the last, which has the rest."""
        if self.swaps_halves:
            whole = _with_halves_swapped(whole)
        widths = [hidden] * (len(self.names) - 1)
        return dict(zip(self.names, whole.split([*widths, whole.shape[0] - sum(widths)]), strict=True))


def from_diffusers(depth: int, depth_single: int, guidance: bool) -> dict[str, DiffusersSource]:
    """Return, for each of our tensors, what it is made of in diffusers' format."""
    return dict(_sources(depth, depth_single, guidance))


def table_for(diffusers_names: Collection[str]) -> dict[str, DiffusersSource]:
    """Return the table for a file with these names, as deep as the file is."""
    depth = _count(diffusers_names, "transformer_blocks")
    single = _count(diffusers_names, "single_transformer_blocks")
    return from_diffusers(depth, single, f"{_GUIDANCE['guidance_in.in_layer']}.weight" in diffusers_names)


def published_table(names: Collection[str]) -> dict[str, DiffusersSource]:
    """Return the table for a file with these published names, as deep as the file is."""
    depth, single = _count(names, "double_blocks"), _count(names, "single_blocks")
    return from_diffusers(depth, single, "guidance_in.in_layer.weight" in names)


def to_diffusers(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return a published file's tensors under diffusers' names, made when they are written."""
    hidden = tensors["img_in.bias"].shape[0]
    return {
        name: tensors[key].changed(partial(_part, source, hidden, name))
        for key, source in published_table(tensors).items()
        for name in source.names
    }


def _part(source: DiffusersSource, hidden: int, name: str, whole: Tensor) -> Tensor:
    return source.split(whole, hidden)[name]


def _with_halves_swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _sources(depth: int, depth_single: int, guidance: bool) -> Iterator[tuple[str, DiffusersSource]]:
    yield from _layers(_EMBEDDERS | (_GUIDANCE if guidance else {}))
    for number in range(depth):
        ours, theirs = f"double_blocks.{number}.", f"transformer_blocks.{number}."
        yield from _layers(_DOUBLE, ours, theirs)
        yield from _norms(_DOUBLE_NORMS, ours, theirs)
    for number in range(depth_single):
        ours, theirs = f"single_blocks.{number}.", f"single_transformer_blocks.{number}."
        yield from _layers(_SINGLE, ours, theirs)
        yield from _norms(_SINGLE_NORMS, ours, theirs)
    for leaf in ("weight", "bias"):
        ours, theirs = (f"{name}.{leaf}" for name in _LAST_MODULATION)
        yield ours, DiffusersSource((theirs,), swaps_halves=True)


def _layers(
    table: Mapping[str, str], ours: str = "", theirs: str = ""
) -> Iterator[tuple[str, DiffusersSource]]:
    for name, others in table.items():
        for leaf in ("weight", "bias"):
            yield (
                f"{ours}{name}.{leaf}",
                DiffusersSource(tuple(f"{theirs}{part}.{leaf}" for part in others.split())),
            )


def _norms(table: Mapping[str, str], ours: str, theirs: str) -> Iterator[tuple[str, DiffusersSource]]:
    for name, other in table.items():
        yield f"{ours}{name}.scale", DiffusersSource((f"{theirs}{other}.weight",))


def _count(names: Collection[str], kind: str) -> int:
    found = (re.match(rf"{kind}\.(\d+)\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
