"""The new words that adapters bring along, in the file that the adapters are merged into."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from sfumato.adapters.network.weight_changes import Adapter
from sfumato.adapters.words.bundle import word_and_name

logger = logging.getLogger(__name__)


def joined_words(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Return the words' vectors by their keys; of a word that several adapters have, those of the first."""
    joined: dict[str, Tensor] = {}
    for adapter in adapters:
        known = {word_and_name(key)[0] for key in joined}
        for key, vectors in adapter.embeddings.items():
            word, _ = word_and_name(key)
            if word not in known:
                joined[key] = vectors
            else:
                logger.warning(
                    "%s: its %r is left out, for another adapter has that word", adapter.path, word
                )
    return joined


def tell_left_out(adapters: Sequence[Adapter]) -> None:
    """Say which words a model cannot take in."""
    for adapter in adapters:
        if words := dict.fromkeys(word_and_name(key)[0] for key in adapter.embeddings):
            named = ", ".join(map(repr, words))
            logger.warning("%s: a model has no place for its new words, left out: %s", adapter.path, named)
