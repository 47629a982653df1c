"""The height and width of the features that a transformer is at work on: inside, they are a row of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn

from sfumato.sampling.effects.regions.masks import Masks


class Place:
    """Masks in the size of the features at hand."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
        self._size = (1, 1)

    @contextmanager
    def followed(self, unet: nn.Module) -> Iterator[None]:
        """Note sizes within the block, whenever a transformer of the UNet begins."""
        model = cast(Any, unet)
        with ExitStack() as hooks:
            for block in (*model.down_blocks, model.mid_block, *model.up_blocks):
                for transformer in getattr(block, "attentions", ()):
                    hooks.callback(transformer.register_forward_pre_hook(self._note).remove)
            yield

    def of_tokens(self, like: Tensor) -> Tensor:
        """Return the masks (n, L, 1) of tokens (B, L, C)."""
        return self._masks.at(self._size, like).flatten(1)[..., None]

    def of_pixels(self, like: Tensor) -> Tensor:
        """Return the masks (n, 1, h, w) of features (B, C, h, w)."""
        return self._masks.at(like.shape[-2:], like)[:, None]

    def _note(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        self._size = height, width
