"""The UNet of Stable Diffusion 1, 2 and XL: diffusers' UNet2DConditionModel, loaded and asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sfumato.lean_imports import lean
from sfumato.models.components.loading import check_names, fill, sizes_of
from sfumato.models.components.tensor_views import Shapes, TensorView
from sfumato.models.components.unet import residuals
from sfumato.models.components.unet.attention import Processor
from sfumato.models.components.unet.channels_last import keep_layout
from sfumato.models.components.unet.unet_names import Topology, diffusers_names, num_existing
from sfumato.models.interface.conditioning import with_inpainting
from sfumato.nn.convolution import is_quickened, quicken
from sfumato.nn.precision import compute_dtype, linear_weights

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

HEAD_WIDTH = 64
"""Dimensions per attention head of Stable Diffusion 2 and XL."""
NUM_HEADS = 8
"""Attention heads of every level of Stable Diffusion 1."""
SIZE_WIDTH = 256
"""Dimensions in which each of the six numbers of an image's framing is told."""

_PUBLISHED_GROUPS = 32


@dataclass(frozen=True)
class UnetShape:
    """Every size that tells one UNet from another.

    Attributes:
        widths: channels of each level, finest first.
        depths: transformer blocks of each level; 0 is a level without.
        middle_depth: transformer blocks between the halves.
        context: width of the text that is attended to.
        vector: width of the vector added to the timestep's (pooled text and framing), or 0.
        is_linear: whether the projections around transformers are Linear layers instead of 1x1 convolutions.
    """

    in_channels: int
    out_channels: int
    resnets: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context: int
    vector: int
    is_linear: bool

    @classmethod
    def of(cls, shapes: Shapes) -> UnetShape:
        """Read the sizes off a file's tensors, in either naming; raise KeyError if one is missing."""
        shapes = {new: shapes[old] for old, new in diffusers_names(shapes).items()}
        topology = Topology.of(shapes)
        levels = range(len(topology.attended))
        return cls(
            in_channels=shapes["conv_in.weight"][1],
            out_channels=shapes["conv_out.weight"][0],
            resnets=topology.resnets,
            widths=tuple(shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels),
            depths=tuple(_depth(shapes, f"down_blocks.{level}.attentions.0") for level in levels),
            middle_depth=_depth(shapes, "mid_block.attentions.0"),
            context=shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1],
            vector=shapes.get("add_embedding.linear_1.weight", (0, 0))[1],
            is_linear=len(shapes["mid_block.attentions.0.proj_in.weight"]) == 2,
        )

    @property
    def usual_side(self) -> int | None:
        """Side of the latents that a model is usual for; only pipelines that inpaint have to be told."""
        is_inpainting = self.in_channels != self.out_channels
        return (128 if self.vector else 64) if is_inpainting else None

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads of each level, as published; files do not say."""
        if not self.is_linear:
            return (NUM_HEADS,) * len(self.widths)
        return tuple(max(1, width // HEAD_WIDTH) for width in self.widths)


def load(
    view: TensorView,
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    num_heads: tuple[int, ...] | None = None,
    what: str = "a UNet",
) -> UNet2DConditionModel:
    """Load a UNet from tensors in either naming, frozen and in eval mode.

    Args:
        dtype: as `loading.fill` has it.
        num_heads: attention heads of each level; None takes those of the published models.
        what: the model that is expected, for messages.
    """
    own = view.renamed({new: old for old, new in diffusers_names(view.shapes).items()})
    model = sizes_of(view.path, what, lambda: build(UnetShape.of(own.shapes), num_heads))
    check_names(view.path, what, set(model.state_dict()), own.shapes)
    fill(model, view.path, own.get, dtype, device, linear_weights(model))
    hasten(model, dtype, device)
    return model


def hasten(model: UNet2DConditionModel, dtype: torch.dtype | None, device: torch.device) -> None:
    """Let a frozen UNet compute in the ways that are fastest in its format, on its device."""
    model.set_attn_processor(cast(Any, Processor()))
    if dtype and is_quickened(dtype, device):
        quicken(model)
        keep_layout(model)


def build(shape: UnetShape, num_heads: tuple[int, ...] | None = None) -> UNet2DConditionModel:
    """Return a UNet of these sizes on the meta device, without numbers."""
    with lean():
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    ups: Any = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in shape.depths[::-1]]
    with torch.device("meta"):
        return UNet2DConditionModel(
            out_channels=shape.out_channels,
            up_block_types=ups,
            sample_size=shape.usual_side,
            **first_half(shape, num_heads),
        )


def first_half(shape: UnetShape, num_heads: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Return what diffusers' networks are told of a UNet's sizes down to its middle, as arguments."""
    heads = num_heads or shape.num_heads
    told: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": shape.vector,
    }
    return {
        "in_channels": shape.in_channels,
        "layers_per_block": shape.resnets,
        "cross_attention_dim": shape.context,
        "use_linear_projection": shape.is_linear,
        "norm_num_groups": math.gcd(_PUBLISHED_GROUPS, *shape.widths),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in shape.depths],
        "block_out_channels": shape.widths,
        # The middle takes the last level's depth, which may itself have no transformer.
        "transformer_layers_per_block": [*(depth or 1 for depth in shape.depths[:-1]), shape.middle_depth],
        # Upstream's name is wrong: these are numbers of heads, and published configurations say them so.
        "attention_head_dim": list(heads) if shape.is_linear else heads[0],
        **(told if shape.vector else {}),
    }


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the residual blocks and transformer blocks in execution order."""
    found = blocks_to_middle(model)
    for up in cast(Any, model).up_blocks:
        found += _interleaved(up)
    return found


def blocks_to_middle(model: nn.Module) -> list[nn.Module]:
    """Return those of a UNet's first half and middle, which a ControlNet has, too."""
    unet = cast(Any, model)
    found: list[nn.Module] = []
    for down in unet.down_blocks:
        found += _interleaved(down)
    first, second = unet.mid_block.resnets
    return [*found, first, *unet.mid_block.attentions[0].transformer_blocks, second]


def predict(
    model: nn.Module,
    noisy: Tensor,
    timesteps: Tensor,
    context: Tensor,
    told: Mapping[str, Tensor] | None = None,
    control: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the UNet's output, shaped and typed like `noisy` (B, C, H/8, W/8).

    Args:
        timesteps: (B,) in [0, 1000).
        context: (B, T, W), the text; or (B, L, T, W), for each of its `transformers` a text of its own.
        told: `text_embeds` (B, P) and `time_ids` (B, 6), for models that take them.
        control: as `Conditioning` has it.
    """
    dtype = compute_dtype(model, noisy.device)
    with _own_texts(model) if context.dim() == 4 else nullcontext():
        output = model(
            with_inpainting(noisy, control or {}).to(dtype),
            timesteps,
            encoder_hidden_states=context.to(dtype),
            added_cond_kwargs=None if told is None else {name: t.to(dtype) for name, t in told.items()},
            return_dict=False,
            **residuals.arguments(control or {}, dtype),
        )[0]
    return output.to(noisy.dtype)


def transformers(model: nn.Module) -> list[nn.Module]:
    """Return the groups of transformer blocks that attend to text, in execution order."""
    unet = cast(Any, model)
    levels = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    return [each for level in levels for each in getattr(level, "attentions", ())]


@contextmanager
def _own_texts(model: nn.Module) -> Iterator[None]:
    """Let each of a model's `transformers` hear its own of the texts (B, L, T, W) that all are given."""

    def choose(number: int, _: nn.Module, args: Any, told: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**told, "encoder_hidden_states": told["encoder_hidden_states"][:, number]}

    hooks = [
        each.register_forward_pre_hook(partial(choose, number), with_kwargs=True)
        for number, each in enumerate(transformers(model))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _interleaved(level: Any) -> Iterator[nn.Module]:
    transformers = getattr(level, "attentions", ())
    for number, resnet in enumerate(level.resnets):
        yield resnet
        if number < len(transformers):
            yield from transformers[number].transformer_blocks


def _depth(shapes: Shapes, transformer: str) -> int:
    return num_existing(shapes, transformer + ".transformer_blocks.{}.norm1.weight")
