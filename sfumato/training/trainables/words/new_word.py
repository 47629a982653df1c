"""A word that is learned: known to the tokenizers, with vectors to begin with in the text encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.words.embedding_file import read_embedding
from sfumato.adapters.words.extended_embedding import extend, table_of
from sfumato.adapters.words.vocabulary import require_width, teach, word_keys
from sfumato.config.run.run import Run
from sfumato.config.run.training.words import JoinedWordConfig, WordsConfig
from sfumato.data.batches.dataset import TrainingSet
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.interface.family import Family
from sfumato.models.interface.parts import Parts
from sfumato.models.interface.tokenizers import Word
from sfumato.training.core.precision import Precision

_SPREAD = 0.02
"""Deviation of the numbers that vectors start from where nothing else is asked for, as that of all tokens."""


@dataclass(frozen=True)
class NewWord:
    """What a run learns of one word.

    Attributes:
        keys: what files call the vectors of each text encoder, by its name.
        start: known words that the vectors start from, or None.
        weights: file of vectors to go on from, or None.
        start_option: the option that names `start`, for messages.
    """

    family: Family
    word: Word
    keys: Mapping[str, str]
    start: str | None = None
    weights: Path | None = None
    start_option: str = "init_word"

    def check(self) -> dict[str, tuple[int, int]]:
        """Return the shape of what is learned, by its key in files; no weight is loaded.

        Raises:
            UserError: the word or what it starts from is not what it should be.
        """
        shapes, given = {}, self._given()
        for part, key in self.keys.items():
            first = self._first(part)
            if key in given:
                require_width(self.family, part, given[key], f"--weights {self.weights}")
            if self.start is not None:
                self._check_start(part, first)
            encoder = self.family.load(part, torch.bfloat16, torch.device("meta"))
            shapes[key] = (len(self.word.tokens), table_of(encoder).weight.shape[1])
        return shapes

    def _check_start(self, part: str, first: int) -> None:
        """Raise UserError unless the vectors start from words that the model knows: tokens below `first`."""
        ids, given = self._start_ids(part), f"--{self.start_option} is {self.start!r}"
        if not ids:
            raise UserError(f"{given}, which is no word; give one, or leave it out")
        if max(ids) >= first:
            raise UserError(f"{given}, which holds the new word itself; give words that the model knows")

    def without_effect(self) -> Iterator[str]:
        """Yield a line where there are more known words to start from than vectors."""
        for part in self.keys if self.start is not None and self.weights is None else ():
            found, count = len(self._start_ids(part)), self.word.num_vectors
            if found > count:
                vectors = counted(count, "vector")
                what = f"--{self.start_option} {self.start!r} is {found} tokens for {vectors}"
                yield f"{what}: the others have no effect"
                return

    def learn(self, parts: Parts, precision: Precision) -> dict[str, nn.Parameter]:
        """Put vectors that learn into the text encoders; return them by their keys in files."""
        vectors, given = {}, self._given()
        for part, key in self.keys.items():
            encoder = parts[part]
            table = table_of(encoder).weight
            start = given[key] if key in given else self._initial(part, table)
            start = start.to(table.device, precision.trained)
            vectors[key] = extend(encoder, self._first(part), start).vectors.requires_grad_(True)
        return vectors

    def as_saved(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return vectors, by their keys, as files hold them: those of layers apart."""
        if not self.word.layers:
            return dict(vectors)
        [joined] = vectors.values()
        return dict(zip(self.word.layers, joined.split(self.word.num_vectors), strict=True))

    def _initial(self, part: str, table: Tensor) -> Tensor:
        """Return (n, width): vectors of known words in turn, or small random numbers."""
        if self.start is None:
            return torch.randn(len(self.word.tokens), table.shape[1]) * _SPREAD
        ids, count = self._start_ids(part), self.word.num_vectors
        in_turn = [ids[number % len(ids)] for number in range(count)]
        return table[in_turn * (len(self.word.tokens) // count)].float()

    def _start_ids(self, part: str) -> list[int]:
        [ids] = self.family.tokenizers[part].ids([self.start or ""])
        return ids

    def _given(self) -> Mapping[str, Tensor]:
        """Return the vectors to go on from, by key."""
        if self.weights is None:
            return {}
        found = read_embedding(self.weights, [*self.keys.values()], self.word.layers)
        count = self.word.num_vectors
        if self.word.layers and not found.is_layered:
            raise UserError(f"--weights {self.weights} has no vectors for each layer; use another file")
        if found.num_vectors != count:
            raise UserError(
                f"--weights {self.weights} has {found.num_vectors} vectors and --num_vectors_per_token is "
                f"{count}; give the same number"
            )
        return found.vectors

    def _first(self, part: str) -> int:
        return teach(self.family, part, [self.word])


def new_word(run: Run, family: Family, layers: tuple[str, ...] = ()) -> NewWord:
    """Return the word that a run's options ask for.

    Args:
        layers: of the denoiser that each have vectors of their own, if they do.

    Raises:
        UserError: there is none, or the model cannot be given words.
    """
    config = run[WordsConfig]
    if not config.token_string:
        raise UserError("--token_string is missing; give the new word, as it stands in the captions")
    origin = f"--token_string {config.token_string}"
    word = Word(config.token_string, config.num_vectors_per_token, layers, origin)
    weights = Path(config.weights) if config.weights else None
    return NewWord(family, word, word_keys(family), config.init_word or None, weights)


def joined_word(run: Run, family: Family) -> NewWord:
    """Return the word that a run learns along with an adapter; a UserError if the model takes none."""
    config = run[JoinedWordConfig]
    text, count = config.train_words or "", config.train_words_vectors
    word = Word(text, count, origin=f"--train_words {text}")
    start = config.train_words_init or None
    return NewWord(family, word, word_keys(family), start, start_option="train_words_init")


def unheard(run: Run, images: TrainingSet) -> Iterator[str]:
    """Yield a line if a word is learned that is in no caption, nor in a sentence in its place."""
    alone, joined = run.get(WordsConfig, WordsConfig()), run.get(JoinedWordConfig, JoinedWordConfig())
    word = alone.token_string or joined.train_words
    if not word:
        return
    for image_set in images.sets:
        if any(subset.captions.templates for subset in image_set.plan.subsets):
            return
        if any(word in caption for caption in image_set.images.captions):
            return
    yield f"no caption holds {word!r}, so that nothing is learned; write it into captions, or use a template"
