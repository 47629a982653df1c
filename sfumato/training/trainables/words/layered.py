"""Learn a word with vectors for each layer of the denoiser: extended textual inversion.

Coarse layers learn what the thing is, fine ones how it looks: Voynov et al. 2023 (arXiv:2303.09522).
"""

from __future__ import annotations

from sfumato.adapters.words.vocabulary import text_layers
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import Family
from sfumato.training.trainables.words.embedding import EmbeddingMethod
from sfumato.training.trainables.words.new_word import new_word


def create(run: Run, family: Family) -> EmbeddingMethod:
    """Return the way to learn the word that `run` asks for, in each layer.

    Raises:
        UserError: the model's layers all read one text.
    """
    layers = text_layers(family)
    if not layers:
        raise UserError(f"{family.identity.architecture} reads one text in all layers; train its embedding")
    return EmbeddingMethod(run, family, new_word(run, family, layers))
