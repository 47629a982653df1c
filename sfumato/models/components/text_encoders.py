"""CLIP and T5 text encoders: transformers' modules, filled from the published files, one tensor at a time.

The files keep the names of transformers 4, and adapter keys follow them: `text_model.encoder.layers.0…` for
CLIP, though transformers 5 has dropped that first level from its CLIPTextModel.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import TensorReader
from sfumato.lean_imports import lean
from sfumato.models.components.loading import check_names, fill, shapes_of, sizes_of
from sfumato.models.components.model_files import open_part
from sfumato.models.components.part_prefixes import CLIP_L, T5XXL
from sfumato.models.components.tensor_views import Shapes, TensorView, view_of
from sfumato.nn.precision import linear_weights

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

Value = TypeVar("Value")

logger = logging.getLogger(__name__)

CLIP_PREFIX = "text_model."
CLIP_HEAD_WIDTH = 64
"""Dimensions per attention head of every published CLIP text encoder; files do not say."""

_PROJECTION = "text_projection.weight"
_IGNORED_BY_CLIP = re.compile(r"text_projection(\.weight)?|logit_scale|.*\.position_ids")
_VISION = ("vision_model.", "visual_projection.")
"""What a whole CLIP holds besides: the encoder of images."""

_IGNORED_BY_T5 = ("decoder.", "lm_head.", "spiece_model")
"""The other half of a whole T5; the vocabulary, which some programs put beside the weights."""

_T5_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")


def layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the repeated layers of a CLIP or T5 text encoder in execution order."""
    stack = clip_body(encoder).encoder
    return [*(stack.layers if hasattr(stack, "layers") else stack.block)]


def num_clip_layers(shapes: Shapes) -> int:
    """Return how many layers a CLIP text encoder has whose tensors have transformers' names."""
    return _count({bare(name): shape for name, shape in shapes.items()}, r"encoder\.layers\.(\d+)\.")


def load_clip(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    activation: str = "quick_gelu",
    num_heads: int | None = None,
    use_mmap: bool = True,
    what: str = "a CLIP text encoder",
) -> CLIPTextModel:
    """Load a CLIP text encoder without its text projection, frozen and in eval mode.

    Args:
        path: file or folder with transformers' names, or a file with all parts of a model.
        activation: `quick_gelu` for CLIP-L, `gelu` for the others.
        num_heads: attention heads; None divides the width by 64, as all published models do.
        use_mmap: as `open_tensors` has it.
        what: the model that is expected, for messages.
    """
    with open_part(path, CLIP_L, use_mmap=use_mmap) as file:
        model = load_clip_view(
            view_of(file), dtype, device, activation=activation, num_heads=num_heads, what=what
        )
    return cast("CLIPTextModel", model)


def load_clip_view(
    view: TensorView,
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    activation: str = "quick_gelu",
    num_heads: int | None = None,
    has_projection: bool = False,
    what: str = "a CLIP text encoder",
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Load a CLIP text encoder from tensors with transformers' names, frozen and in eval mode.

    Args:
        view: with or without `text_model.` before the names.
        has_projection: load the text projection too.
        dtype: as `loading.fill` has it.
        activation, num_heads, what: as `load_clip` has it.
    """
    if any(name.startswith(_VISION) for name in view.shapes):
        logger.info("%s is a whole CLIP, of which the text encoder is used", view.path)
    names = {bare(name): name for name in view.shapes if not _is_ignored(name, has_projection)}
    own = view.renamed(names)
    model = sizes_of(view.path, what, lambda: build_clip(own.shapes, activation, num_heads, has_projection))
    prefix = CLIP_PREFIX if f"{CLIP_PREFIX}final_layer_norm.weight" in view.shapes else ""
    wanted = {name if name == _PROJECTION else f"{prefix}{name}" for name in map(bare, model.state_dict())}
    check_names(view.path, what, wanted, names.values())
    fill(model, view.path, lambda name: own.get(bare(name)), dtype, device, linear_weights(model))
    positions = torch.arange(model.config.max_position_embeddings, device=device)
    embeddings = clip_body(model).embeddings
    # Not in the file, so still without numbers.
    embeddings.register_buffer("position_ids", positions.expand(1, -1), persistent=False)
    return model


def clip_body(encoder: nn.Module) -> Any:
    """Return the module that holds embeddings, layers and norm: the encoder itself or what it wraps."""
    return getattr(encoder, "text_model", encoder)


def clip_tensors(state: Mapping[str, Value]) -> dict[str, Value]:
    """Return a CLIP text encoder's state by transformers' names without `text_model.`."""
    return {bare(name): value for name, value in state.items()}


@overload
def build_clip(shapes: Shapes, activation: str, num_heads: int | None) -> CLIPTextModel: ...
@overload
def build_clip(
    shapes: Shapes, activation: str, num_heads: int | None, has_projection: bool
) -> CLIPTextModel | CLIPTextModelWithProjection: ...
def build_clip(
    shapes: Shapes, activation: str, num_heads: int | None, has_projection: bool = False
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Return a CLIP text encoder of these sizes (names without `text_model.`) on the meta device."""
    with lean():
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=num_clip_layers(shapes),
        num_attention_heads=num_heads or max(1, width // CLIP_HEAD_WIDTH),
        max_position_embeddings=shapes["embeddings.position_embedding.weight"][0],
        hidden_act=activation,
        projection_dim=shapes[_PROJECTION][0] if has_projection else width,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )
    with torch.device("meta"):
        return CLIPTextModelWithProjection(config) if has_projection else CLIPTextModel(config)


def published_clip(state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return a CLIP text encoder's tensors by the names of published files."""
    return {
        name if name == _PROJECTION else f"{CLIP_PREFIX}{name}": value
        for name, value in clip_tensors(state).items()
    }


def load_t5(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    use_mmap: bool = True,
    what: str = "a T5 text encoder",
) -> T5EncoderModel:
    """Load the encoder of a T5 v1.1, frozen and in eval mode; a decoder in the file is left out.

    Args:
        path: file or folder with transformers' names, or a file with all parts of a model.
    """
    with open_part(path, T5XXL, use_mmap=use_mmap) as file:
        shapes = shapes_of(file)
        names = [name for name in shapes if not name.startswith(_IGNORED_BY_T5)]
        model = sizes_of(path, what, lambda: build_t5(shapes))
        # Either name of the embedding will do for both.
        check_names(path, what, set(model.state_dict()), {*names, *_T5_EMBEDDINGS})
        stored = {name for name in linear_weights(model) if name.startswith("encoder.block.")}
        fill(model, path, partial(_t5_tensor, file), dtype, device, stored)
    model.encoder.embed_tokens.weight = model.shared.weight
    _feed_forward_in_input_format(model)
    return model


def build_t5(shapes: Mapping[str, tuple[int, ...]]) -> T5EncoderModel:
    """Return a T5 encoder of these sizes on the meta device."""
    with lean():
        from transformers import T5Config, T5EncoderModel

    embedding = next((name for name in _T5_EMBEDDINGS if name in shapes), _T5_EMBEDDINGS[0])
    vocabulary, width = shapes[embedding]
    buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        num_layers=_count(shapes, r"encoder\.block\.(\d+)\."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    with torch.device("meta"):
        return T5EncoderModel(config)


def published_t5(state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return a T5 encoder's tensors as published files have them: the embedding under both names."""
    embedding = next(state[name] for name in _T5_EMBEDDINGS if name in state)
    return {**state, **dict.fromkeys(_T5_EMBEDDINGS, embedding)}


def published(state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return a CLIP's or a T5's tensors by the names of published files."""
    return published_t5(state) if _T5_EMBEDDINGS[0] in state else published_clip(state)


def stored_once(state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return a text encoder's tensors as transformers writes them: T5's embedding under its first name."""
    first, second = _T5_EMBEDDINGS
    if first not in state:
        return published_clip(state)
    return {name: value for name, value in state.items() if name != second}


def name_in_file(name: str, names: Collection[str]) -> str | None:
    """Return what a file with these names calls a text encoder's tensor; None where it holds no such."""
    others = _T5_EMBEDDINGS if name in _T5_EMBEDDINGS else (bare(name), CLIP_PREFIX + bare(name))
    return next((known for known in (name, *others) if known in names), None)


def bare(name: str) -> str:
    """Return a CLIP tensor's name without `text_model.`, which some versions and files have."""
    return name.removeprefix(CLIP_PREFIX)


def _is_ignored(name: str, has_projection: bool) -> bool:
    is_other = name.startswith(_VISION) or bool(_IGNORED_BY_CLIP.fullmatch(name))
    return is_other and not (has_projection and name == _PROJECTION)


def _t5_tensor(file: TensorReader, name: str) -> Tensor:
    return file.get(name_in_file(name, file.keys()) or name)


def _feed_forward_in_input_format(model: nn.Module) -> None:
    """Keep the feed-forward layers from rounding hidden states to the format that weights are stored in.

    transformers casts what enters `wo` to the format of its weight, which in fp8 loses nearly all of it.
    """
    for name, dense in model.named_modules():
        if name.endswith(".DenseReluDense"):
            dense.forward = partial(_gated_feed_forward, dense)


def _gated_feed_forward(dense: Any, x: Tensor) -> Tensor:
    """Return W_o (gelu(W_0 x) * W_1 x), the GEGLU of Shazeer 2020 (arXiv:2002.05202, eq. 6)."""
    return dense.wo(dense.act(dense.wi_0(x)) * dense.wi_1(x))


def _count(names: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    return max((int(match[1]) + 1 for name in names if (match := re.match(pattern, name))), default=0)
