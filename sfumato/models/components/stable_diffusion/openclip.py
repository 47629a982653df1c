"""OpenCLIP text encoders as checkpoints hold them, and as transformers' CLIP names them.

OpenCLIP fuses query, key and value, and multiplies by its text projection from the right; a Linear layer
keeps the transposed matrix. Some files hold it transposed all the same: see `is_projection_transposed`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.models.components.tensor_views import Shapes, TensorView

LOGIT_SCALE = 4.6052
"""ln 100, where the training of CLIP holds the logits' scale; encoding texts does not use it."""

_OUTSIDE = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_INSIDE = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = "transformer.resblocks."
PROJECTION = "text_projection"


def num_layers(names: Shapes) -> int:
    """Return how many layers a file's encoder has."""
    found = (re.match(rf"{re.escape(_BLOCK)}(\d+)\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def plain_names(layers: int) -> dict[str, str]:
    """Return transformers' name (without `text_model.`) of each OpenCLIP tensor that is the same in both."""
    names = dict(_OUTSIDE)
    for layer in range(layers):
        for theirs, ours in _INSIDE.items():
            for leaf in ("weight", "bias"):
                names[f"{_BLOCK}{layer}.{theirs}.{leaf}"] = f"encoder.layers.{layer}.{ours}.{leaf}"
    return names


def fused_names(layers: int) -> dict[str, tuple[str, str, str]]:
    """Return transformers' names of query, key and value for each OpenCLIP tensor that joins them."""
    return {
        f"{_BLOCK}{layer}.attn.in_proj_{leaf}": (
            f"encoder.layers.{layer}.self_attn.q_proj.{leaf}",
            f"encoder.layers.{layer}.self_attn.k_proj.{leaf}",
            f"encoder.layers.{layer}.self_attn.v_proj.{leaf}",
        )
        for layer in range(layers)
        for leaf in ("weight", "bias")
    }


def as_transformers(
    view: TensorView, layers: int, *, has_projection: bool, metadata: Mapping[str, str]
) -> TensorView:
    """Return an OpenCLIP encoder under transformers' names, without `text_model.`.

    Args:
        layers: how many of the file's layers are used, from the first.
        has_projection: whether the text projection is wanted.
        metadata: the file's strings.
    """
    sources: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for theirs, ours in plain_names(layers).items():
        if theirs in view.shapes:
            shapes[ours] = view.shapes[theirs]
            sources[ours] = _reader(view, theirs)
    for theirs, group in fused_names(layers).items():
        for index, ours in enumerate(group if theirs in view.shapes else ()):
            rows, *rest = view.shapes[theirs]
            shapes[ours] = (rows // 3, *rest)
            sources[ours] = _third(view, theirs, index)
    if has_projection:
        _add_projection(view, shapes, sources, metadata)
    return TensorView(view.path, shapes, lambda name: sources[name]())


def is_projection_transposed(shapes: Shapes, metadata: Mapping[str, str]) -> bool:
    """Return whether a file holds the text projection as a Linear layer keeps it, not as OpenCLIP does.

    sd-scripts writes it so when its base came from a folder in diffusers' layout. Where the projection is not
    square, its shape tells. Where it is, two things together do: such files lack the logits' scale, which no
    folder has, and they carry the metadata that sd-scripts writes. Files of other programs lack one or the
    other, and hold the matrix as published.
    """
    width = shapes["ln_final.weight"][0]
    rows, columns = shapes[PROJECTION]
    if rows != columns:
        return columns == width
    return "logit_scale" not in shapes and any(key.startswith("modelspec.") for key in metadata)


def published(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return transformers' tensors (without `text_model.`) as OpenCLIP has them, made when written."""
    layers = _num_transformers_layers(tensors)
    found = {theirs: tensors[ours] for theirs, ours in plain_names(layers).items()}
    for theirs, ours in fused_names(layers).items():
        found[theirs] = LazyTensor.joined([tensors[name] for name in ours])
    if f"{PROJECTION}.weight" in tensors:
        found[PROJECTION] = tensors[f"{PROJECTION}.weight"].changed(lambda weight: weight.T.contiguous())
    return found


def unused_layer(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return what files of Stable Diffusion 2 hold besides, for a model that came without: nothing uses it.

    The layer behind the last is a copy of the last.
    """
    layers = _num_transformers_layers(tensors)
    last, behind = f"{_BLOCK}{layers - 1}.", f"{_BLOCK}{layers}."
    copies = {
        behind + name.removeprefix(last): tensor
        for name, tensor in published(tensors).items()
        if name.startswith(last)
    }
    width = tensors["final_layer_norm.weight"].shape[0]
    ones = LazyTensor(torch.float32, (width, width), lambda: torch.ones(width, width))
    return copies | {PROJECTION: ones} | logit_scale()


def logit_scale() -> dict[str, LazyTensor]:
    """Return the logits' scale, which checkpoints hold and nothing uses."""
    return {"logit_scale": LazyTensor(torch.float32, (), lambda: torch.tensor(LOGIT_SCALE))}


def _add_projection(
    view: TensorView,
    shapes: dict[str, tuple[int, ...]],
    sources: dict[str, Callable[[], Tensor]],
    metadata: Mapping[str, str],
) -> None:
    ours = f"{PROJECTION}.weight"
    if ours in view.shapes:  # early converters wrote the Linear layer's name, and its matrix
        shapes[ours], sources[ours] = view.shapes[ours], _reader(view, ours)
    elif PROJECTION in view.shapes:
        is_transposed = is_projection_transposed(view.shapes, metadata)
        shape = view.shapes[PROJECTION]
        shapes[ours] = shape if is_transposed else shape[::-1]
        sources[ours] = _reader(view, PROJECTION) if is_transposed else _transposed(view, PROJECTION)


def _num_transformers_layers(names: Iterable[str]) -> int:
    return sum(name.endswith(".layer_norm1.weight") for name in names)


def _reader(view: TensorView, name: str) -> Callable[[], Tensor]:
    return lambda: view.get(name)


def _transposed(view: TensorView, name: str) -> Callable[[], Tensor]:
    return lambda: view.get(name).T.contiguous()


def _third(view: TensorView, name: str, index: int) -> Callable[[], Tensor]:
    return lambda: view.get(name).chunk(3)[index].contiguous()
