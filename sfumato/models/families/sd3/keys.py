"""SD3 tensor names: the published file's (ours) and those of diffusers' SD3Transformer2DModel."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.models.components.dit import diffusers_source
from sfumato.models.components.dit.diffusers_source import DiffusersSource, count_blocks, layers

_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
}
_POSITIONS = "pos_embed", "pos_embed.pos_embed"
_LAST_MODULATION = {"final_layer.adaLN_modulation.1": "norm_out.linear"}
_TEXT_ATTENTION = {"context_block.attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj"}
_TEXT_MODULATION = {"context_block.adaLN_modulation.1": "norm1_context.linear"}
_TEXT = {
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    **_TEXT_MODULATION,
}
"""What the last block lacks, but for the modulation."""
_IMAGE = {
    "x_block.attn.qkv": "attn.to_q attn.to_k attn.to_v",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
}
_DUAL = {
    "x_block.attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v",
    "x_block.attn2.proj": "attn2.to_out.0",
}
_NORMS = {
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
}
_DUAL_NORMS = {"x_block.attn2.ln_q": "attn2.norm_q", "x_block.attn2.ln_k": "attn2.norm_k"}


def from_diffusers(
    depth: int, *, has_qk_norm: bool, dual_blocks: Collection[int] = ()
) -> dict[str, DiffusersSource]:
    """Return, for each of our tensors, what it is made of in diffusers' format."""
    return dict(_sources(depth, has_qk_norm, dual_blocks))


def table_for(diffusers_names: Collection[str]) -> dict[str, DiffusersSource]:
    """Return the table for a file with these names, as deep as the file is."""
    depth = count_blocks(diffusers_names, "transformer_blocks")
    return from_diffusers(
        depth,
        has_qk_norm="transformer_blocks.0.attn.norm_q.weight" in diffusers_names,
        dual_blocks=[
            i for i in range(depth) if f"transformer_blocks.{i}.attn2.to_q.weight" in diffusers_names
        ],
    )


def published_table(names: Collection[str]) -> dict[str, DiffusersSource]:
    """Return the table for a file with these published names, as deep as the file is."""
    depth = count_blocks(names, "joint_blocks")
    return from_diffusers(
        depth,
        has_qk_norm="joint_blocks.0.x_block.attn.ln_q.weight" in names,
        dual_blocks=[i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in names],
    )


def to_diffusers(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return a published file's tensors under diffusers' names, made when they are written."""
    hidden = tensors["x_embedder.proj.bias"].shape[0]
    return diffusers_source.to_diffusers(tensors, published_table(tensors), hidden)


def _sources(
    depth: int, has_qk_norm: bool, dual_blocks: Collection[int]
) -> Iterator[tuple[str, DiffusersSource]]:
    yield from layers(_OUTSIDE)
    yield _POSITIONS[0], DiffusersSource((_POSITIONS[1],))
    for number in range(depth):
        ours, theirs = f"joint_blocks.{number}.", f"transformer_blocks.{number}."
        is_last, is_dual = number == depth - 1, number in dual_blocks
        yield from layers(_TEXT_ATTENTION | _IMAGE | (_DUAL if is_dual else {}), ours, theirs)
        # Of a stream that ends there are a shift and a scale only, which diffusers has in the other order.
        yield from layers(_TEXT_MODULATION if is_last else _TEXT, ours, theirs, swaps_halves=is_last)
        norms = _NORMS | (_DUAL_NORMS if is_dual else {})
        for name, other in norms.items() if has_qk_norm else ():
            yield f"{ours}{name}.weight", DiffusersSource((f"{theirs}{other}.weight",))
    yield from layers(_LAST_MODULATION, swaps_halves=True)
