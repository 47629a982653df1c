"""A text encoder's table of token vectors, with the vectors of new words behind it.

Only the new vectors are parameters that learn: the table, of 49,408 rows in CLIP, gets no gradients and no
optimizer state, and is not copied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.components.text_encoders import clip_body


class ExtendedEmbedding(nn.Embedding):
    """An embedding whose highest ids are those of new words.

    Args:
        table: the embedding of all other tokens, whose weight is shared.
        first: id of the first new token; those that follow count up from it.
        vectors: (N, W), one for each new token.
    """

    def __init__(self, table: nn.Embedding, first: int, vectors: Tensor) -> None:
        count, width = table.weight.shape
        super().__init__(count, width, _weight=table.weight, _freeze=True)
        self.first = first
        self.vectors = nn.Parameter(vectors, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., W) of ids (...), in the dtype of the table."""
        is_new = input >= self.first
        known = F.embedding(input.masked_fill(is_new, 0), self.weight)
        new = F.embedding((input - self.first).clamp(min=0), self.vectors)
        return torch.where(is_new[..., None], new.to(known.dtype), known)


def table_of(encoder: nn.Module) -> nn.Embedding:
    """Return the table of token vectors of a CLIP text encoder."""
    return clip_body(encoder).embeddings.token_embedding


def extend(encoder: nn.Module, first: int, vectors: Tensor) -> ExtendedEmbedding:
    """Give a CLIP text encoder vectors of new words; arguments as `ExtendedEmbedding` has them."""
    extended = ExtendedEmbedding(table_of(encoder), first, vectors)
    clip_body(encoder).embeddings.token_embedding = extended
    return extended
