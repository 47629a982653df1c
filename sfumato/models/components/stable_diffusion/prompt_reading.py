"""How prompts of image generation are read where that is not as captions are: in the manner of gen_img."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sfumato.config.run.image_scripts.texts import PromptTextConfig
from sfumato.config.run.run import Run
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.stable_diffusion.prompt_windows import read_prompts
from sfumato.models.components.tokenizers import Tokenizer
from sfumato.models.interface.family import EmphasisMean
from sfumato.models.interface.tokenizers import Tokenizers


@dataclass(frozen=True)
class PromptReading:
    """Prompts take as many windows as the longest needs, and windows keep their start and end.

    Attributes:
        most_windows: what is longer is cut off.
        layer: whose state is taken, counted from the last, which is 1; None is the model's own.
        mean: what emphasis leaves as it is.
    """

    most_windows: int = 1
    layer: int | None = None
    mean: EmphasisMean = "original"

    def tokenize(self, tokenizers: Tokenizers[Tokenizer], prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return each encoder's token ids and weights, (B, windows, 77), by its name.

        `word1` is the second vector of a learned word `word`.
        """
        tokens: dict[str, Tensor] = {}
        for part in tokenizers:
            tokenizer = replace(tokenizers[part], names_vectors=True)
            tokens |= clip.named(read_prompts(tokenizer, prompts, self.most_windows), part)
        return tokens


def reading_for(run: Run) -> PromptReading | None:
    """Return how a run's prompts are read; None is as captions are."""
    if PromptTextConfig not in run:
        return None
    config = run[PromptTextConfig]
    return PromptReading(config.max_embeddings_multiples or 1, config.clip_skip, config.emb_normalize_mode)
