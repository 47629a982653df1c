"""Prompts of image generation as windows of 75 tokens, as many as the longest prompt needs.

`BREAK` in a prompt ends a window: what follows is encoded by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch

from sfumato.models.components import emphasis
from sfumato.models.components.stable_diffusion.clip import WINDOW, Words, stacked
from sfumato.models.components.tokenizers import Tokenizer

logger = logging.getLogger(__name__)


def read_prompts(tokenizer: Tokenizer, prompts: Sequence[str], most_windows: int) -> Words:
    """Return prompts as tokens, all of the same number of windows.

    sd-scripts pads to multiples of 77 at a BREAK, so that later windows begin with padding; here each begins
    with its first word.

    Args:
        prompts: with `(word:1.3)` and `[word]` as emphasis; what does not fit into the windows is cut off.
        most_windows: `--max_embeddings_multiples`.
    """
    if by_layer := tokenizer.by_layer():
        return stacked([read_prompts(layer, prompts, most_windows) for layer in by_layer])
    contents = [_content(tokenizer, prompt) for prompt in prompts]
    longest = max(len(content.ids) for content in contents)
    num = min(max(-(-longest // WINDOW), 1), most_windows)
    if longest > num * WINDOW:
        logger.warning(
            "a prompt has %d tokens; those behind the first %d are left out", longest, num * WINDOW
        )
    ids = [_windows(tokenizer, content.ids[: num * WINDOW], num) for content in contents]
    weights = [_framed_weights(content.weights, num) for content in contents]
    return Words(torch.tensor(ids), torch.tensor(weights))


class _Content(NamedTuple):
    """Tokens between the start and the end of a prompt."""

    ids: list[int]
    weights: list[float]


def _content(tokenizer: Tokenizer, prompt: str) -> _Content:
    content = _Content([], [])
    for number, section in enumerate(emphasis.sections(prompt)):
        if number:
            num_missing = WINDOW - len(content.ids) % WINDOW
            content.ids.extend([tokenizer.padding] * num_missing)
            content.weights.extend([1.0] * num_missing)
        rows = tokenizer.ids([text for text, _ in section])
        for row, (_, weight) in zip(rows, section, strict=True):
            content.ids.extend(row)
            content.weights.extend([weight] * len(row))
    return content


def _windows(tokenizer: Tokenizer, ids: Sequence[int], num: int) -> list[list[int]]:
    """Return (num, 77) ids: a start, 75 tokens, an end.

    The end of a prompt stands behind its last token, and padding in the place of a window's last token needs
    none behind it. A window without any token begins with an end, as an empty prompt does.
    """
    start, *row = tokenizer.framed(ids, num * WINDOW + 2)
    end = tokenizer.framed([])[1]
    windows = [[start, *row[at : at + WINDOW + 1]] for at in range(0, num * WINDOW, WINDOW)]
    for window in windows:
        if window[-1] != tokenizer.padding:
            window[-1] = end
        if window[1] == tokenizer.padding:
            window[1] = end
    return windows


def _framed_weights(weights: Sequence[float], num: int) -> list[list[float]]:
    """Return (num, 77) weights; start, end and padding weigh 1."""
    filled = [*weights, *[1.0] * (num * WINDOW)][: num * WINDOW]
    return [[1.0, *filled[at : at + WINDOW], 1.0] for at in range(0, num * WINDOW, WINDOW)]
