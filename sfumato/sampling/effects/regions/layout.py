"""How the rows of a batch lie that is asked for several sub-prompts of each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Rows of features: those that follow prompts, one an image, then those of other passes.

    Rows of text are more: the sub-prompts of the first image, those of the second and so on, then those of
    other passes: negative prompts, or none.
    """

    num_images: int
    num_prompts: int

    @property
    def num_asked(self) -> int:
        """How many rows of text are sub-prompts."""
        return self.num_images * self.num_prompts

    def spread(self, features: Tensor) -> Tensor:
        """Return (rows, ...) with each image's row as often as it has sub-prompts."""
        asking = features[: self.num_images].repeat_interleave(self.num_prompts, dim=0)
        return torch.cat([asking, features[self.num_images :]])

    def rows_of(self, prompt: int) -> slice:
        """Return which rows of text are the sub-prompt of that number, one for each image."""
        return slice(prompt, self.num_asked, self.num_prompts)
