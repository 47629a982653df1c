"""FLUX tensor names: the published file's (ours) and those of diffusers' FluxTransformer2DModel."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.models.components.dit import diffusers_source
from sfumato.models.components.dit.diffusers_source import DiffusersSource, count_blocks, layers

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
_LAST_MODULATION = {"final_layer.adaLN_modulation.1": "norm_out.linear"}
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


def from_diffusers(depth: int, depth_single: int, guidance: bool) -> dict[str, DiffusersSource]:
    """Return, for each of our tensors, what it is made of in diffusers' format."""
    return dict(_sources(depth, depth_single, guidance))


def table_for(diffusers_names: Collection[str]) -> dict[str, DiffusersSource]:
    """Return the table for a file with these names, as deep as the file is."""
    depth = count_blocks(diffusers_names, "transformer_blocks")
    single = count_blocks(diffusers_names, "single_transformer_blocks")
    return from_diffusers(depth, single, f"{_GUIDANCE['guidance_in.in_layer']}.weight" in diffusers_names)


def published_table(names: Collection[str]) -> dict[str, DiffusersSource]:
    """Return the table for a file with these published names, as deep as the file is."""
    depth, single = count_blocks(names, "double_blocks"), count_blocks(names, "single_blocks")
    return from_diffusers(depth, single, "guidance_in.in_layer.weight" in names)


def to_diffusers(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return a published file's tensors under diffusers' names, made when they are written."""
    hidden = tensors["img_in.bias"].shape[0]
    return diffusers_source.to_diffusers(tensors, published_table(tensors), hidden)


def _sources(depth: int, depth_single: int, guidance: bool) -> Iterator[tuple[str, DiffusersSource]]:
    yield from layers(_EMBEDDERS | (_GUIDANCE if guidance else {}))
    for number in range(depth):
        ours, theirs = f"double_blocks.{number}.", f"transformer_blocks.{number}."
        yield from layers(_DOUBLE, ours, theirs)
        yield from _norms(_DOUBLE_NORMS, ours, theirs)
    for number in range(depth_single):
        ours, theirs = f"single_blocks.{number}.", f"single_transformer_blocks.{number}."
        yield from layers(_SINGLE, ours, theirs)
        yield from _norms(_SINGLE_NORMS, ours, theirs)
    yield from layers(_LAST_MODULATION, swaps_halves=True)


def _norms(table: Mapping[str, str], ours: str, theirs: str) -> Iterator[tuple[str, DiffusersSource]]:
    for name, other in table.items():
        yield f"{ours}{name}.scale", DiffusersSource((f"{theirs}{other}.weight",))
