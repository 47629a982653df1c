"""The FLUX.1 transformer (Black Forest Labs 2024): text and image tokens in one stream of attention.

Module names equal the tensor names of the published files, so a file loads without renaming and an adapter's
key is its module's path. Class names and attribute paths are public: other people's adapters select by them.

Legend: B batch, L image tokens, T text tokens, C hidden size, H heads, D = C / H.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.attention import attend, visible_keys
from sfumato.nn.time_embedding import sinusoids

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of every token's rotary angles, each (B, 1, tokens, D / 2) float32."""

_EPS = 1e-6
_TIME_WIDTH = 256


@dataclass(frozen=True)
class FluxShape:
    """Every size that tells one FLUX from another.

    Attributes:
        in_channels: channels of a packed token, 4 per latent channel.
        text_width: width of the T5 states (T5-XXL: 4096).
        pooled_width: width of the pooled CLIP vector (CLIP-L: 768).
        mlp_hidden: width inside the feed-forward layers, 4 * hidden_size in the published models.
        axes_dim: how many of a head's dimensions turn with each of the three position axes.
        guidance: whether the model was distilled to take a guidance scale (dev) or not (schnell).
    """

    hidden_size: int = 3072
    num_heads: int = 24
    depth: int = 19
    depth_single: int = 38
    in_channels: int = 64
    text_width: int = 4096
    pooled_width: int = 768
    mlp_hidden: int = 12288
    axes_dim: tuple[int, int, int] = (16, 56, 56)
    guidance: bool = True
    theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.hidden_size != self.num_heads * sum(self.axes_dim):
            raise ValueError(f"{self.num_heads} heads of {self.axes_dim} do not make {self.hidden_size}")

    @classmethod
    def of(
        cls, shapes: Mapping[str, tuple[int, ...]], axes_dim: tuple[int, int, int] | None = None
    ) -> FluxShape:
        """Read the sizes off a file's tensors.

        Args:
            shapes: shape of each tensor by its published name.
            axes_dim: given where the model does not divide its heads as the published one does.
        """
        hidden_size, in_channels = shapes["img_in.weight"]
        (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
        return cls(
            hidden_size=hidden_size,
            num_heads=hidden_size // head_dim,
            depth=_count_blocks(shapes, "double_blocks"),
            depth_single=_count_blocks(shapes, "single_blocks"),
            in_channels=in_channels,
            text_width=shapes["txt_in.weight"][1],
            pooled_width=shapes["vector_in.in_layer.weight"][1],
            mlp_hidden=shapes["double_blocks.0.img_mlp.0.weight"][0],
            axes_dim=axes_dim or axes_of(head_dim),
            guidance="guidance_in.in_layer.weight" in shapes,
        )


def axes_of(head_dim: int) -> tuple[int, int, int]:
    """Divide a head's dimensions among (image index, row, column) as 1/8, 7/16, 7/16, each even."""
    side = 2 * (head_dim * 7 // 32)
    return head_dim - 2 * side, side, side


def rotation(ids: Tensor, axes_dim: Iterable[int], theta: float = 10000.0) -> Rotation:
    """Return the rotary angles of positions (Su et al. 2021, eq. 15), one band of frequencies per axis.

    Args:
        ids: (B, tokens, 3), position on each axis.
    """
    # Float64 keeps far positions exact; devices without it leave this small table to the processor.
    exact = ids.to("cuda" if ids.device.type == "cuda" else "cpu", torch.float64)
    bands = []
    for axis, width in enumerate(axes_dim):
        powers = torch.arange(0, width, 2, dtype=torch.float64, device=exact.device) / width
        bands.append(exact[..., axis, None] * theta**-powers)
    angles = torch.cat(bands, dim=-1)[:, None]
    return angles.cos().to(ids.device, torch.float32), angles.sin().to(ids.device, torch.float32)


class Modulated(Protocol):
    """A network whose blocks are modulated as FLUX's are."""

    shape: FluxShape

    @property
    def time_in(self) -> MLPEmbedder:
        """Reads the noise level."""
        ...

    @property
    def vector_in(self) -> MLPEmbedder:
        """Reads the pooled CLIP vector."""
        ...

    @property
    def guidance_in(self) -> MLPEmbedder:
        """Reads the guidance scale, where the model was distilled for it."""
        ...


def modulating_vector(
    model: Modulated, timesteps: Tensor, y: Tensor, guidance: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the vector (B, C) that modulates all blocks; arguments are those of `Flux`."""
    vec = model.time_in(time_embedding(timesteps).to(dtype))
    if model.shape.guidance:
        if guidance is None:
            raise ValueError("this model was distilled for guidance: pass a guidance scale")
        vec = vec + model.guidance_in(time_embedding(guidance).to(dtype))
    return vec + model.vector_in(y)


def rotate(heads: Tensor, turn: Rotation) -> Tensor:
    """Turn each adjacent pair of dimensions of heads (B, H, tokens, D) by its position's angle."""
    cos, sin = turn
    x, y = heads.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1).flatten(-2).to(heads.dtype)


def time_embedding(values: Tensor, width: int = _TIME_WIDTH) -> Tensor:
    """Return (B, width) float32: cosines, then sines, of 1000 * values (B,); see `sinusoids`."""
    return sinusoids(1000.0 * values.float(), width)


class Flux(nn.Module):
    """Predict the velocity from clean image to noise, token by token."""

    def __init__(self, shape: FluxShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.hidden_size
        self.img_in = nn.Linear(shape.in_channels, width)
        self.time_in = MLPEmbedder(_TIME_WIDTH, width)
        self.vector_in = MLPEmbedder(shape.pooled_width, width)
        if shape.guidance:
            self.guidance_in = MLPEmbedder(_TIME_WIDTH, width)
        self.txt_in = nn.Linear(shape.text_width, width)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(shape) for _ in range(shape.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(shape) for _ in range(shape.depth_single))
        self.final_layer = LastLayer(width, shape.in_channels)

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
        txt_attention_mask: Tensor | None = None,
        residuals: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return the velocity (B, L, in_channels), noise minus clean latents.

        Args:
            img: (B, L, in_channels), packed noisy latents.
            img_ids: (B, L, 3), (0, row, column) of each token.
            txt: (B, T, text_width), T5 states.
            txt_ids: (B, T, 3), zeros.
            timesteps: (B,) noise level, 0 = clean, 1 = noise.
            y: (B, pooled_width), pooled CLIP vector.
            guidance: (B,) guidance scale; needed by a model that was distilled for it, ignored by others.
            txt_attention_mask: (B, T), nonzero for real text tokens; None shows them all.
            residuals: (B, L, C), added to the image tokens behind each double block, in turn.
        """
        vec = modulating_vector(self, timesteps, y, guidance, img.dtype)
        turn = rotation(torch.cat((txt_ids, img_ids), dim=1), self.shape.axes_dim, self.shape.theta)
        mask = text_mask(txt_attention_mask, img.shape[1])
        img, txt = self.img_in(img), self.txt_in(txt)
        for number, block in enumerate(self.double_blocks):
            img, txt = block(img, txt, vec, turn, mask)
            if residuals:
                img = img + residuals[number % len(residuals)]
        stream = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            stream = block(stream, vec, turn, mask)
        return self.final_layer(stream[:, txt.shape[1] :], vec)


class MLPEmbedder(nn.Module):
    """Lift a vector to the hidden size."""

    def __init__(self, in_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_size)
        self.silu = nn.SiLU()
        self.out_layer = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_dim) to (B, C)."""
        return self.out_layer(self.silu(self.in_layer(x)))


class RMSNorm(nn.Module):
    """Scale heads to unit root mean square, in float32 (Zhang and Sennrich 2019, eq. 4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, tokens, D) to the same shape and dtype."""
        return F.rms_norm(x.float(), self.scale.shape, self.scale.float(), _EPS).to(x.dtype)


class QKNorm(nn.Module):
    """Normalise queries and keys, each with its own scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Map two (B, H, tokens, D) to the same shapes."""
        return self.query_norm(query), self.key_norm(key)


class SelfAttention(nn.Module):
    """The projections around an attention that a block computes for both its streams together."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.norm = QKNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised queries, keys and plain values, each (B, H, tokens, D), of x (B, tokens, C)."""
        query, key, value = _split_heads(self.qkv(x), self.num_heads)
        query, key = self.norm(query, key)
        return query, key, value


class Modulation(nn.Module):
    """Derive shifts, scales and gates from the modulating vector."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.lin = nn.Linear(dim, count * dim)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        """Map (B, C) to `count` tensors of (B, 1, C): (shift, scale, gate) once or twice."""
        return self.lin(F.silu(vec))[:, None].chunk(self.count, dim=-1)


class DoubleStreamBlock(nn.Module):
    """Text and image keep their own weights and meet in one attention."""

    def __init__(self, shape: FluxShape) -> None:
        super().__init__()
        self.img_mod, self.img_norm1, self.img_attn, self.img_norm2, self.img_mlp = _stream(shape)
        self.txt_mod, self.txt_norm1, self.txt_attn, self.txt_norm2, self.txt_mlp = _stream(shape)

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, turn: Rotation, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return img (B, L, C) and txt (B, T, C) after attention and feed-forward."""
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = self.img_mod(vec)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = self.txt_mod(vec)

        txt_heads = self.txt_attn.heads(_modulate(self.txt_norm1(txt), txt_shift1, txt_scale1))
        img_heads = self.img_attn.heads(_modulate(self.img_norm1(img), img_shift1, img_scale1))
        query, key, value = (torch.cat(pair, dim=2) for pair in zip(txt_heads, img_heads, strict=True))
        attended = attend(rotate(query, turn), rotate(key, turn), value, mask)
        txt_attended, img_attended = attended.split((txt.shape[1], img.shape[1]), dim=1)

        img = img + img_gate1 * self.img_attn.proj(img_attended)
        img = img + img_gate2 * self.img_mlp(_modulate(self.img_norm2(img), img_shift2, img_scale2))
        txt = txt + txt_gate1 * self.txt_attn.proj(txt_attended)
        txt = txt + txt_gate2 * self.txt_mlp(_modulate(self.txt_norm2(txt), txt_shift2, txt_scale2))
        return img, txt


class SingleStreamBlock(nn.Module):
    """Attention and feed-forward side by side, over text and image in one sequence."""

    def __init__(self, shape: FluxShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.num_heads = shape.num_heads
        self.widths = (3 * width, shape.mlp_hidden)
        self.linear1 = nn.Linear(width, sum(self.widths))
        self.linear2 = nn.Linear(width + shape.mlp_hidden, width)
        self.norm = QKNorm(width // shape.num_heads)
        self.pre_norm = nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)
        self.mlp_act = nn.GELU(approximate="tanh")
        self.modulation = Modulation(width, 3)

    def forward(self, x: Tensor, vec: Tensor, turn: Rotation, mask: Tensor | None = None) -> Tensor:
        """Map (B, T + L, C) to the same shape."""
        shift, scale, gate = self.modulation(vec)
        qkv, mlp = self.linear1(_modulate(self.pre_norm(x), shift, scale)).split(self.widths, dim=-1)
        query, key, value = _split_heads(qkv, self.num_heads)
        query, key = self.norm(query, key)
        attended = attend(rotate(query, turn), rotate(key, turn), value, mask)
        return x + gate * self.linear2(torch.cat((attended, self.mlp_act(mlp)), dim=-1))


class LastLayer(nn.Module):
    """Bring image tokens back to latent channels."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=_EPS)
        self.linear = nn.Linear(hidden_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        """Map (B, L, C) to (B, L, out_channels)."""
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


def _stream(shape: FluxShape) -> tuple[nn.Module, nn.Module, SelfAttention, nn.Module, nn.Module]:
    """Build one stream of a double block, in the order in which adapter files list its layers."""
    width = shape.hidden_size
    feed_forward = nn.Sequential(
        nn.Linear(width, shape.mlp_hidden), nn.GELU(approximate="tanh"), nn.Linear(shape.mlp_hidden, width)
    )
    return (
        Modulation(width, 6),
        nn.LayerNorm(width, elementwise_affine=False, eps=_EPS),
        SelfAttention(width, shape.num_heads),
        nn.LayerNorm(width, elementwise_affine=False, eps=_EPS),
        feed_forward,
    )


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (1 + scale) * x + shift


def _split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split (B, tokens, 3 * C) into three (B, H, tokens, D)."""
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def text_mask(text: Tensor | None, num_image_tokens: int) -> Tensor | None:
    """Extend the text's mask (B, T), if there is one, over the image tokens, which are always visible."""
    return None if text is None else visible_keys(F.pad(text.bool(), (0, num_image_tokens), value=True))


def _count_blocks(names: Iterable[str], kind: str) -> int:
    found = (re.match(rf"{kind}\.(\d+)\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
