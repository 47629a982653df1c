"""What Stable Diffusion reads of a prompt: CLIP's states of one or more windows of 75 tokens, joined.

A long prompt is cut into windows that are encoded one by one, each between a start and an end token. Joined,
they keep the first start and the last end: 75 n + 2 positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.models.components import emphasis
from sfumato.models.components.text_encoders import clip_body
from sfumato.models.components.tokenizers import CLIP_L, CLIP_LENGTH, Tokenizer, load_clip
from sfumato.models.interface.targets import AdapterTarget, others

WINDOW = CLIP_LENGTH - 2
"""Tokens of a prompt in one window."""


@dataclass(frozen=True)
class Words:
    """A batch of prompts as one encoder takes it.

    Attributes:
        ids: (B, windows, 77) int64; (B, L, windows, 77) where each of L layers of the denoiser reads its own.
        weights: float32, shaped like `ids`, how much each position counts; None is 1.
    """

    ids: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class TokenizerSource:
    """Where the tokenizer of one text encoder is found.

    Attributes:
        folder: where a folder in diffusers' layout keeps it.
        names: the hub's ids of tokenizers with CLIP-L's vocabulary; its own is tried last.
        pad_token: as `tokenizers.load_clip` has it.
    """

    folder: str
    names: tuple[str, ...] = ()
    pad_token: str | None = None


def num_windows(max_token_length: int | None) -> int:
    """Return how many windows `--max_token_length` (75, 150, 225 or not given) asks for."""
    return max(1, (max_token_length or WINDOW) // WINDOW)


def read(tokenizer: Tokenizer, captions: Sequence[str], windows: int, *, is_weighted: bool) -> Words:
    """Return captions as tokens; with `is_weighted`, brackets in them are emphasis instead of text."""
    if by_layer := tokenizer.by_layer():
        return stacked([read(layer, captions, windows, is_weighted=is_weighted) for layer in by_layer])
    if not is_weighted:
        return Words(tokenizer.windows(captions, windows))
    ids, weights = tokenizer.weighted_windows([emphasis.parse(caption) for caption in captions], windows)
    return Words(ids, weights)


def stacked(layers: Sequence[Words]) -> Words:
    """Return the tokens of one batch as each layer of the denoiser reads them."""
    weights = [words.weights for words in layers if words.weights is not None]
    return Words(
        torch.stack([words.ids for words in layers], 1), torch.stack(weights, 1) if weights else None
    )


def encode(
    encoder: nn.Module, words: Words, *, layer: int = 1, has_norm: bool = True, keeps_frames: bool = False
) -> tuple[Tensor, Any]:
    """Run a CLIP text encoder.

    Args:
        layer: whose state is taken, counted from the last, which is 1.
        has_norm: whether the encoder's last norm is applied to it.
        keeps_frames: keep start and end of every window, as sd-scripts does in image generation: 77 n
            positions.

    Returns:
        (B, 75 n + 2, C), and the encoder's whole output for the (B * n, 77) windows. Of texts for L layers,
        (B, L, 75 n + 2, C) and (B * L * n, 77).
    """
    if words.ids.dim() == 4:
        weights = None if words.weights is None else words.weights.flatten(0, 1)
        one_by_one = Words(words.ids.flatten(0, 1), weights)
        told: dict[str, Any] = {"layer": layer, "has_norm": has_norm, "keeps_frames": keeps_frames}
        states, out = encode(encoder, one_by_one, **told)
        return states.unflatten(0, words.ids.shape[:2]), out
    device = next(encoder.parameters()).device
    out = encoder(input_ids=words.ids.to(device).flatten(0, 1), output_hidden_states=True)
    states = out.hidden_states[-layer]
    if has_norm:
        states = clip_body(encoder).final_layer_norm(states)
    states = states.unflatten(0, words.ids.shape[:2])
    if words.weights is not None:
        states = _weighed(states, words.weights.to(device))
    return states.flatten(1, 2) if keeps_frames else _joined(states), out


def weights_in_use(
    encoder: nn.Module, *, layer: int = 1, has_norm: bool = True, has_summary: bool = False
) -> dict[str, nn.Parameter]:
    """Return the weights on which what `encode` returns depends, by their names; arguments as it has them.

    Args:
        has_summary: whether the projected summary is used, which depends on all.
    """
    if has_summary:
        return dict(encoder.named_parameters())
    body = clip_body(encoder)
    unused = [*body.encoder.layers[len(body.encoder.layers) - layer + 1 :]]
    unused += [] if has_norm else [body.final_layer_norm]
    strangers = {id(weight) for module in unused for weight in module.parameters()}
    inner = {id(weight) for weight in body.parameters()} - strangers
    return {name: weight for name, weight in encoder.named_parameters() if id(weight) in inner}


def named(words: Words, part: str) -> dict[str, Tensor]:
    """Return tokens as `Family.tokenize` hands them out."""
    weights = {} if words.weights is None else {f"{part}_weights": words.weights}
    return {part: words.ids, **weights}


def load_tokenizer(
    source: TokenizerSource,
    *,
    checkpoint: Path | None,
    cache_dir: Path | None,
    access: HubAccess = ANYBODY,
) -> Tokenizer:
    """Load the tokenizer that is given, or that a checkpoint brings along, or that lies ready elsewhere.

    Args:
        checkpoint: the file or folder of the base; a folder `tokenizers` beside a file is looked into.
        cache_dir, access: as `tokenizers.load_clip` has them.
    """
    pad_token = source.pad_token
    if (name := _held_by(cache_dir, source)) is not None:
        return load_clip(name, cache_dir=cache_dir, pad_token=pad_token)
    if checkpoint is not None and (checkpoint / source.folder).is_dir():
        return load_clip(source.folder, bundled_dir=checkpoint, pad_token=pad_token)
    beside = checkpoint.parent / "tokenizers" if checkpoint else None
    name = _held_by(beside, source) or CLIP_L
    return load_clip(name, cache_dir=cache_dir, bundled_dir=beside, pad_token=pad_token, access=access)


def _held_by(place: Path | None, source: TokenizerSource) -> str | None:
    """Return the first tokenizer that would do, of those that a folder of tokenizers has."""
    if place is None:
        return None
    names = (*source.names, CLIP_L)
    return next((name for name in names if (place / name.replace("/", "_")).is_dir()), None)


def targets(encoder: nn.Module, part: str, owner: str) -> Iterator[AdapterTarget]:
    """Yield the attention and feed-forward layers of a CLIP text encoder.

    Args:
        owner: what files put before the layer's path: `te`, `te1` ...
    """
    for index, layer in enumerate(clip_body(encoder).encoder.layers):
        for path, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                name = f"{owner}_text_model.encoder.layers.{index}.{path}".replace(".", "_")
                yield AdapterTarget(name, module, part, path.partition(".")[0], ("layer", index))


def further_targets(encoder: nn.Module, part: str, owner: str) -> Iterator[AdapterTarget]:
    """Yield the embeddings, norms and projection of a CLIP text encoder; `owner` as in `targets`."""
    body = clip_body(encoder)
    known = [target.module for target in targets(encoder, part, owner)]

    yield from others(body, known, part, lambda path: f"{owner}_text_model_{path}".replace(".", "_"))
    yield from others(encoder, [*body.modules()], part, lambda path: f"{owner}_{path}".replace(".", "_"))


def _weighed(states: Tensor, weights: Tensor) -> Tensor:
    """Multiply states (B, n, 77, C) by weights (B, n, 77); start and end tokens weigh 1."""
    return states * weights.to(states.dtype)[..., None]


def _joined(states: Tensor) -> Tensor:
    """Return (B, 75 n + 2, C) of (B, n, 77, C): the first start, all tokens, the last end."""
    inner = states[:, :, 1:-1].flatten(1, 2)
    return torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)
