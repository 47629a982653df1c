"""How the text encoders read prompts."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class PromptTextConfig:
    """Reading of prompts."""

    clip_skip: int | None = None
    """Take the text encoders' output this many layers before their end, from 1; what suits the model when not
    given."""

    max_embeddings_multiples: int | None = None
    """How many times 75 tokens a prompt may have; 1 when not given. What is longer is cut off."""

    emb_normalize_mode: Literal["original", "none", "abs"] = "original"
    """What emphasis leaves as it would be without: the mean, nothing, or the mean of absolute values."""

    def __post_init__(self) -> None:
        at_least(self, 1, "clip_skip", "max_embeddings_multiples")


@dataclass(frozen=True)
class EmbeddingConfig:
    """Words that were learned."""

    textual_inversion_embeddings: tuple[str, ...] | None = None
    """Files with learned words; each is named as its file without suffix."""

    XTI_embeddings: tuple[str, ...] | None = None
    """Files with words that were learned for each layer."""
