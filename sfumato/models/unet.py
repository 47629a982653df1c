"""The UNet of Stable Diffusion 1, 2 and XL: diffusers' UNet2DConditionModel, from and to published files.

Checkpoints number the blocks of each half through (`input_blocks.4.1`), diffusers counts per level
(`down_blocks.1.attentions.0`). One table of prefixes, generated from the topology, translates both ways.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sfumato.models.attention import Processor
from sfumato.models.family import DENOISER, AdapterTarget
from sfumato.models.loading import check_names, fill, sizes_of
from sfumato.models.views import Shapes, View
from sfumato.nn.convolution import is_quickened, quicken
from sfumato.nn.precision import compute_dtype, linear_weights

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

HEAD_WIDTH = 64
"""Dimensions per attention head of Stable Diffusion 2 and XL."""
NUM_HEADS = 8
"""Attention heads of every level of Stable Diffusion 1."""
SIZE_WIDTH = 256
"""Dimensions in which each of the six numbers of a picture's framing is told."""

_PUBLISHED_GROUPS = 32
_ADAPTED = re.compile(r"\.(attentions|resnets|downsamplers|upsamplers)\.\d+\.")
_TRANSFORMER = re.compile(r"(.*\.transformer_blocks\.\d+)\.(attn1|attn2|ff)\.")
_ATTENTION = re.compile(r"\.attn\d\.")
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
            name = "down_blocks.{}.resnets.{}.conv1.weight"
            levels = len(_existing(names, lambda level: name.format(level, 0)))
            resnets = len(_existing(names, lambda number: name.format(0, number)))
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


def diffusers_names(names: Collection[str]) -> dict[str, str]:
    """Return diffusers' name for each name of a file, without prefix; diffusers' own names stay."""
    if "conv_in.weight" in names:
        return {name: name for name in names}
    table = Topology.of(names).table()
    return {name: _translated(name, table, _RESNET) for name in names}


def published_names(names: Collection[str]) -> dict[str, str]:
    """Return the checkpoint's name, without prefix, for each of diffusers' names."""
    table, resnet = _to_published(names)
    return {name: _translated(name, table, resnet) for name in names}


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
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads of each level, as published; files do not say."""
        if not self.is_linear:
            return (NUM_HEADS,) * len(self.widths)
        return tuple(max(1, width // HEAD_WIDTH) for width in self.widths)


@dataclass(frozen=True)
class Numbering:
    """How adapters' options count the blocks of one part of a UNet.

    Attributes:
        kind: what they call these blocks.
        first: number of the first of them.
        is_one: whether all of them count as one.
    """

    kind: str
    first: int
    is_one: bool = False


def load(
    view: View,
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
    shape = sizes_of(view.path, what, lambda: UnetShape.of(own.shapes))
    model = build(shape, num_heads)
    check_names(view.path, what, set(model.state_dict()), own.shapes)
    fill(model, view.path, own.get, dtype, device, linear_weights(model))
    hasten(model, dtype, device)
    return model


def hasten(model: UNet2DConditionModel, dtype: torch.dtype | None, device: torch.device) -> None:
    """Let a frozen UNet compute in the ways that are fastest in its format, on its device."""
    model.set_attn_processor(cast(Any, Processor()))
    if dtype and is_quickened(dtype, device):
        quicken(model)


def build(shape: UnetShape, num_heads: tuple[int, ...] | None = None) -> UNet2DConditionModel:
    """Return a UNet of these sizes on the meta device, without numbers."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    heads = num_heads or shape.num_heads
    downs = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in shape.depths]
    ups = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in shape.depths[::-1]]
    told: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": shape.vector,
    }
    per_level: dict[str, Any] = {  # typed upstream as if there were always four levels
        "down_block_types": downs,
        "up_block_types": ups,
        "block_out_channels": shape.widths,
        # The middle takes the last level's depth, which may itself have no transformer.
        "transformer_layers_per_block": [*(depth or 1 for depth in shape.depths[:-1]), shape.middle_depth],
        # Upstream's name is wrong: these are numbers of heads, and published configurations say them so.
        "attention_head_dim": list(heads) if shape.is_linear else heads[0],
    }
    with torch.device("meta"):
        return UNet2DConditionModel(
            in_channels=shape.in_channels,
            out_channels=shape.out_channels,
            layers_per_block=shape.resnets,
            cross_attention_dim=shape.context,
            use_linear_projection=shape.is_linear,
            norm_num_groups=math.gcd(_PUBLISHED_GROUPS, *shape.widths),
            **per_level,
            **(told if shape.vector else {}),
        )


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the residual blocks and transformer blocks in execution order."""
    unet = cast(Any, model)
    found: list[nn.Module] = []
    for down in unet.down_blocks:
        found += _interleaved(down)
    first, second = unet.mid_block.resnets
    found += [first, *unet.mid_block.attentions[0].transformer_blocks, second]
    for up in unet.up_blocks:
        found += _interleaved(up)
    return found


def predict(
    model: nn.Module,
    noisy: Tensor,
    timesteps: Tensor,
    context: Tensor,
    told: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return the UNet's output, shaped and typed like `noisy` (B, C, H/8, W/8).

    Args:
        timesteps: (B,) in [0, 1000).
        context: (B, T, W), the text.
        told: `text_embeds` (B, P) and `time_ids` (B, 6), for models that take them.
    """
    dtype = compute_dtype(model, noisy.device)
    output = model(
        noisy.to(dtype),
        timesteps,
        encoder_hidden_states=context.to(dtype),
        added_cond_kwargs=None if told is None else {name: t.to(dtype) for name, t in told.items()},
        return_dict=False,
    )[0]
    return output.to(noisy.dtype)


def targets(
    model: nn.Module, numbering: Mapping[str, Numbering], *, has_published_names: bool
) -> Iterator[AdapterTarget]:
    """Yield the layers that adapters know: those of transformers and, only when asked for, of all else.

    Args:
        numbering: of the blocks of each part of a checkpoint's UNet.
        has_published_names: whether adapter files name layers as checkpoints do; otherwise as diffusers does.
    """
    layers = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and _ADAPTED.search(path)
    }
    published = published_names_of_modules(model, layers)
    for path in _ordered(list(layers), published if has_published_names else None):
        layer = layers[path]
        name = f"unet_{published[path] if has_published_names else path}".replace(".", "_")
        is_default = ".attentions." in path
        yield AdapterTarget(
            name,
            layer,
            DENOISER,
            _kind(path, layer),
            _block(published[path], numbering),
            is_default=is_default,
        )


def published_names_of_modules(model: nn.Module, paths: Collection[str]) -> dict[str, str]:
    """Return the checkpoint's path for each of diffusers' module paths."""
    table, resnet = _to_published(model.state_dict())
    return {path: _translated(path, table, resnet) for path in paths}


def _block(path: str, numbering: Mapping[str, Numbering]) -> tuple[str, int]:
    part, number = path.split(".")[:2]
    found = numbering[part]
    return found.kind, found.first + (0 if found.is_one else int(number))


def _ordered(paths: list[str], published: Mapping[str, str] | None) -> list[str]:
    """Return module paths in the order in which sd-scripts adapts them: seeds and optimizer states follow it.

    Within a transformer block the feed-forward layers come between the attentions.
    """
    indices, starts = {path: index for index, path in enumerate(paths)}, dict[str, int]()

    def place(path: str) -> tuple[tuple[str, int, int], int, int]:
        index = indices[path]
        block = _TRANSFORMER.match(path)
        outer = _place(published[path]) if published else ("", 0, 0)
        if block is None:
            return outer, index, 0
        return outer, starts.setdefault(block[1], index), ("attn1", "ff", "attn2").index(block[2])

    return sorted(paths, key=place)


def _place(path: str) -> tuple[str, int, int]:
    """Return what sorts a checkpoint's paths as its modules lie: input, middle and output blocks."""
    part, *numbers = path.split(".")[:3]
    return part, int(numbers[0]), int(numbers[1]) if numbers[1].isdigit() else 0


def _kind(path: str, layer: nn.Module) -> str:
    if _ATTENTION.search(path):
        return "attn"
    if not isinstance(layer, nn.Conv2d):
        return "linear"
    return f"conv{layer.kernel_size[0]}x{layer.kernel_size[1]}"


def _interleaved(level: Any) -> Iterator[nn.Module]:
    transformers = getattr(level, "attentions", ())
    for number, resnet in enumerate(level.resnets):
        yield resnet
        if number < len(transformers):
            yield from transformers[number].transformer_blocks


def _to_published(names: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tables from diffusers' prefixes to a checkpoint's: of blocks, and within residual blocks."""
    blocks = {ours: theirs for theirs, ours in Topology.of(names).table().items()}
    return blocks, {ours: theirs for theirs, ours in _RESNET.items()}


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


def _depth(shapes: Shapes, transformer: str) -> int:
    pattern = "{}.transformer_blocks.{}.norm1.weight"
    return len(_existing(shapes, lambda number: pattern.format(transformer, number)))


def _existing(names: Collection[str], name_of: Any) -> list[int]:
    return list(takewhile(lambda number: name_of(number) in names, count()))


def _has(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
