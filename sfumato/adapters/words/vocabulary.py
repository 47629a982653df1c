"""New words of a model: in its tokenizers at once, and in its text encoders as these are loaded.

vocabulary = Vocabulary(family, [learned_word(Path("zxqk.safetensors"), family)])
parts = Parts(family, device, change=vocabulary)

Training, caches, previews and generation then read `zxqk` alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.words.embedding_file import read_embedding
from sfumato.adapters.words.extended_embedding import extend, table_of
from sfumato.errors import UserError
from sfumato.models.interface.family import Family
from sfumato.models.interface.tokenizers import ReadsInLayers, TakesWords, Word


@dataclass(frozen=True)
class LearnedWord:
    """A word with its vectors.

    Attributes:
        vectors: (n, width) float32, one for each of the word's tokens, by the text encoder's name; encoders
            without any read it as any other text.
    """

    word: Word
    vectors: Mapping[str, Tensor]


class Vocabulary:
    """The new words of one family; a `PartChange`.

    Args:
        family: its tokenizers know the words from now on.
        learned: words that differ from each other.

    Raises:
        UserError: a word is in a vocabulary already, or its vectors do not fit; no weight is loaded for that.
    """

    def __init__(self, family: Family, learned: Sequence[LearnedWord]) -> None:
        self._family = family
        self._first: dict[str, int] = {}
        self._vectors: dict[str, Tensor] = {}
        for part in word_keys(family) if learned else ():
            own = [each for each in learned if part in each.vectors]
            for each in own:
                require_width(family, part, each.vectors[part], each.word.origin)
            if own:
                self._first[part] = teach(family, part, [each.word for each in own])
                self._vectors[part] = torch.cat([each.vectors[part] for each in own])

    def __call__(self, part: str, module: nn.Module, device: torch.device) -> None:
        """Give a text encoder that was loaded the vectors of the words."""
        if part in self._vectors:
            extend(module, self._first[part], self._vectors[part].to(table_of(module).weight.device))

    def mark(self, part: str) -> str:
        """Return what tells the outputs of an encoder with these words from others, for caches."""
        if part not in self._vectors:
            return ""
        words = self._family.tokenizers[part].words
        digest = hashlib.sha256(repr([(word.text, word.tokens) for word in words]).encode())
        digest.update(self._vectors[part].numpy().tobytes())
        return digest.hexdigest()[:16]


def learned_word(path: Path, family: Family) -> LearnedWord:
    """Read an embedding file; the word is the file's name without suffix.

    Raises:
        UserError: the file is missing or damaged, or the model cannot be given words.
    """
    keys, layers = word_keys(family), text_layers(family)
    found = read_embedding(path, list(keys.values()), layers)
    vectors = {part: found.vectors[key] for part, key in keys.items() if key in found.vectors}
    own = layers if found.is_layered else ()
    return LearnedWord(Word(path.stem, found.num_vectors, own, str(path), "rename the file"), vectors)


def text_layers(family: Family) -> tuple[str, ...]:
    """Return the denoiser's layers that can be given texts of their own; none where there are no such."""
    return family.text_layers if isinstance(family, ReadsInLayers) else ()


def word_keys(family: Family) -> Mapping[str, str]:
    """Return what files call the vectors of each text encoder that can be given words, by its name.

    Raises:
        UserError: there is none.
    """
    if not isinstance(family, TakesWords):
        raise UserError(f"{family.identity.architecture} cannot be given new words; leave them out")
    return {part: key for part, key in family.word_keys.items() if part in family.text_outputs}


def teach(family: Family, part: str, words: Iterable[Word]) -> int:
    """Let a tokenizer of the family know new words, unless it does; return the id of the first.

    Raises:
        UserError: a word is in the vocabulary already.
    """
    tokenizer = family.tokenizers[part]
    unknown = [word for word in words if word not in tokenizer.words]
    if unknown:
        family.tokenizers[part] = tokenizer.with_words(unknown)
    known = family.tokenizers[part]
    return known.size - sum(len(word.tokens) for word in known.words)


def require_width(family: Family, part: str, vectors: Tensor, origin: str) -> None:
    """Raise UserError if vectors (n, width) do not fit a text encoder."""
    encoder = family.load(part, torch.bfloat16, torch.device("meta"))
    width = table_of(encoder).weight.shape[1]
    if vectors.shape[1] != width:
        raise UserError(
            f"{origin}: vectors of {vectors.shape[1]} numbers; {part} of this model takes {width}, so use a "
            "word that was trained for it"
        )
