"""The MMDiT of Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206).

Text and image tokens keep their own weights and meet in each block's attention. Module names equal the tensor
names of the published files, so a file loads without renaming and an adapter's key is its module's path.
Class names and attribute paths are public: other people's adapters select by them.

Legend: B batch, L image tokens, T text tokens, C hidden size, H heads, D = C / H.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.families.sd3.positions import PATCH, Corner, ScaledPositions
from sfumato.nn.attention import attend
from sfumato.nn.time_embedding import sinusoids

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each (B, H, tokens, D)."""

HEAD_DIM = 64
"""Of every published model; files that do not normalise queries and keys do not say."""

_EPS = 1e-6
_TIME_WIDTH = 256
_DUAL = re.compile(r"joint_blocks\.(\d+)\.x_block\.attn2\.qkv\.weight")


@dataclass(frozen=True)
class MMDiTShape:
    """Every size that tells one of these models from another.

    Attributes:
        text_width: width of the text tokens (T5-XXL: 4096).
        pooled_width: width of the pooled text vector (CLIP-L and CLIP-G together: 2048).
        mlp_hidden: width inside the feed-forward layers, 4 * hidden_size in the published models.
        side: patches on each side of the table of positions, 192 or, in SD3.5-medium, 384.
        has_qk_norm: whether queries and keys are normalised, as in SD3.5.
        dual_blocks: blocks whose image tokens also attend to themselves alone, as in SD3.5-medium.
    """

    hidden_size: int = 1536
    num_heads: int = 24
    depth: int = 24
    channels: int = 16
    text_width: int = 4096
    pooled_width: int = 2048
    mlp_hidden: int = 6144
    side: int = 192
    has_qk_norm: bool = False
    dual_blocks: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide {self.hidden_size}")

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> MMDiTShape:
        """Read the sizes off a file's tensors (shape by published name)."""
        hidden, channels, *_ = shapes["x_embedder.proj.weight"]
        (head_dim,) = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight", (HEAD_DIM,))
        return cls(
            hidden_size=hidden,
            num_heads=hidden // head_dim,
            depth=_count_blocks(shapes),
            channels=channels,
            text_width=shapes["context_embedder.weight"][1],
            pooled_width=shapes["y_embedder.mlp.0.weight"][1],
            mlp_hidden=shapes["joint_blocks.0.x_block.mlp.fc1.weight"][0],
            side=isqrt(shapes["pos_embed"][1]),
            has_qk_norm="joint_blocks.0.x_block.attn.ln_q.weight" in shapes,
            dual_blocks=frozenset(int(match[1]) for match in map(_DUAL.fullmatch, shapes) if match),
        )

    @property
    def variant(self) -> str:
        """What files call the model: `medium`, `5-large` or `5-medium`."""
        if not self.has_qk_norm:
            return "medium"
        return "5-medium" if self.dual_blocks else "5-large"


class MMDiT(nn.Module):
    """Predict the velocity from clean latents to noise.

    Attributes:
        scaled_positions: tables that stand in for that of the file; None uses the file's.
    """

    pos_embed: Tensor
    scaled_positions: ScaledPositions | None

    def __init__(self, shape: MMDiTShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.hidden_size
        self.x_embedder = PatchEmbed(shape.channels, width)
        self.register_buffer("pos_embed", torch.zeros(1, shape.side**2, width))
        self.scaled_positions = None
        self.t_embedder = Embedder(_TIME_WIDTH, width)
        self.y_embedder = Embedder(shape.pooled_width, width)
        self.context_embedder = nn.Linear(shape.text_width, width)
        self.joint_blocks = nn.ModuleList(JointTransformerBlock(shape, i) for i in range(shape.depth))
        self.final_layer = FinalLayer(width, PATCH**2 * shape.channels)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor, corner: Corner | None = None
    ) -> Tensor:
        """Return the velocity, noise minus clean latents, shaped like x.

        Args:
            x: (B, channels, H/8, W/8), noisy latents of even sides.
            timesteps: (B,) in [0, 1000], 0 = clean.
            context: (B, T, text_width), text tokens.
            y: (B, pooled_width), pooled text vector.
            corner: where the image lies in the table of positions; None is its middle.
        """
        rows, columns = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        vec = self.t_embedder(sinusoids(timesteps, _TIME_WIDTH).to(x.dtype)) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.positions(rows, columns, corner).to(x.dtype)
        context = self.context_embedder(context)
        for block in self.joint_blocks:
            context, tokens = block(context, tokens, vec)
        return _unpatch(self.final_layer(tokens, vec), rows, columns)

    def positions(self, rows: int, columns: int, corner: Corner | None = None) -> Tensor:
        """Return the positions of an image of that many patches, (1, L, C); `corner` as in `forward`.

        Raises:
            ValueError: the table is smaller than the image.
        """
        table = self.table(rows, columns)
        side = len(table)
        if max(rows, columns) > side:
            raise ValueError(f"{rows} x {columns} patches do not fit the table of {side} x {side} positions")
        top, left = corner or ((side - rows) // 2, (side - columns) // 2)
        return table[top : top + rows, left : left + columns].flatten(0, 1)[None]

    def table(self, rows: int, columns: int) -> Tensor:
        """Return the table of positions for an image of that many patches, (side, side, C)."""
        if self.scaled_positions is not None:
            return self.scaled_positions(rows, columns)
        return self.pos_embed[0].unflatten(0, (self.shape.side, self.shape.side))


class PatchEmbed(nn.Module):
    """Turn each patch of latents into a token."""

    def __init__(self, channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, hidden_size, kernel_size=PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H/8, W/8) to (B, L, C), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Embedder(nn.Module):
    """Lift a vector to the hidden size."""

    def __init__(self, in_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim) to (B, C)."""
        return self.mlp(x)


class RMSNorm(nn.Module):
    """Scale heads to unit root mean square, in float32 (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, tokens, D) to the same shape and dtype."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), _EPS).to(x.dtype)


class SelfAttention(nn.Module):
    """The projections around an attention.

    Args:
        is_last: whether nothing reads what was attended to, so that there is no projection after it.
    """

    def __init__(self, shape: MMDiTShape, *, is_last: bool = False) -> None:
        super().__init__()
        width = shape.hidden_size
        self.num_heads = shape.num_heads
        self.qkv = nn.Linear(width, 3 * width)
        if shape.has_qk_norm:
            self.ln_q = RMSNorm(width // shape.num_heads)
            self.ln_k = RMSNorm(width // shape.num_heads)
        self.has_norm = shape.has_qk_norm
        if not is_last:
            self.proj = nn.Linear(width, width)

    def heads(self, x: Tensor) -> Heads:
        """Return queries, keys and values of x (B, tokens, C)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (self.ln_q(query), self.ln_k(key), value) if self.has_norm else (query, key, value)


class Mlp(nn.Module):
    """The feed-forward layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, tokens, C) to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class DismantledBlock(nn.Module):
    """The weights of one stream, text or image, in a block.

    Args:
        is_last: whether the stream ends here: it is attended to, and nothing comes back.
        is_dual: whether a second attention sees this stream alone.
    """

    def __init__(self, shape: MMDiTShape, *, is_last: bool = False, is_dual: bool = False) -> None:
        super().__init__()
        width = shape.hidden_size
        self.is_last, self.is_dual = is_last, is_dual
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.attn = SelfAttention(shape, is_last=is_last)
        if is_dual:
            self.attn2 = SelfAttention(shape)
        if not is_last:
            self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
            self.mlp = Mlp(width, shape.mlp_hidden)
        self.num_vectors = 2 if is_last else 9 if is_dual else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.num_vectors * width))

    def vectors(self, vec: Tensor) -> tuple[Tensor, ...]:
        """Return the shifts, scales and gates, (B, 1, C) each, that follow from vec (B, C)."""
        return self.adaLN_modulation(vec)[:, None].chunk(self.num_vectors, dim=-1)

    def after(self, x: Tensor, attended: Tensor, normed: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        """Return the stream (B, tokens, C) after the joint attention, its own, and the feed-forward.

        Args:
            attended: (B, tokens, C), what the joint attention returned for this stream.
            normed: (B, tokens, C), x before the block's shifts and scales.
        """
        _, _, gate, shift_mlp, scale_mlp, gate_mlp, *own = vectors
        x = x + gate * self.attn.proj(attended)
        if self.is_dual:
            shift, scale, gate = own
            alone = attend(*self.attn2.heads(_modulate(normed, shift, scale)))
            x = x + gate * self.attn2.proj(alone)
        return x + gate_mlp * self.mlp(_modulate(self.norm2(x), shift_mlp, scale_mlp))


class JointTransformerBlock(nn.Module):
    """Text and image keep their own weights and meet in one attention."""

    def __init__(self, shape: MMDiTShape, index: int) -> None:
        super().__init__()
        self.context_block = DismantledBlock(shape, is_last=index == shape.depth - 1)
        self.x_block = DismantledBlock(shape, is_dual=index in shape.dual_blocks)

    def forward(self, context: Tensor, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        """Return context (B, T, C), as it was where it ends here, and x (B, L, C)."""
        streams = (self.context_block, self.x_block)
        vectors = [block.vectors(vec) for block in streams]
        normed = [block.norm1(tokens) for block, tokens in zip(streams, (context, x), strict=True)]
        context_heads, x_heads = (
            block.attn.heads(_modulate(tokens, *told[:2]))
            for block, tokens, told in zip(streams, normed, vectors, strict=True)
        )
        query, key, value = (torch.cat(pair, dim=2) for pair in zip(context_heads, x_heads, strict=True))
        context_part, x_part = attend(query, key, value).split((context.shape[1], x.shape[1]), dim=1)
        if not self.context_block.is_last:
            context = self.context_block.after(context, context_part, normed[0], vectors[0])
        return context, self.x_block.after(x, x_part, normed[1], vectors[1])


class FinalLayer(nn.Module):
    """Bring image tokens back to patches of latents."""

    def __init__(self, hidden_size: int, out_dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.linear = nn.Linear(hidden_size, out_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        """Map (B, L, C) to (B, L, out_dim)."""
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (1 + scale) * x + shift


def _unpatch(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Return (B, channels, H/8, W/8) of (B, L, values), a token's values channel by channel last."""
    patches = tokens.unflatten(2, (PATCH, PATCH, -1)).unflatten(1, (rows, columns))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _count_blocks(names: Iterable[str]) -> int:
    found = (re.match(r"joint_blocks\.(\d+)\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
