"""The tokenizers of one run's text encoders: given to a family, so that others can be put in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@dataclass(frozen=True)
class Word:
    """A new word: what people write, and how many vectors a text encoder has for it.

    Attributes:
        layers: of the denoiser, each of which has its own vectors for the word; empty where all read alike.
        origin: the option or file that names it, with its value, for messages.
        remedy: what to do if it is no new word.
    """

    text: str
    num_vectors: int = 1
    layers: tuple[str, ...] = ()
    origin: str = "the word"
    remedy: str = "choose another word"

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens that stand for the word, one for each vector: of one layer after the other."""
        return tuple(token for layer in self.layers or ("",) for token in self.tokens_in(layer))

    def tokens_in(self, layer: str) -> tuple[str, ...]:
        """Return the tokens for what one layer reads: the word, and the word with a number.

        Args:
            layer: "" is any, of a word that all read alike, and the first otherwise.
        """
        numbered = (self.text, *(f"{self.text}{number}" for number in range(1, self.num_vectors)))
        if not self.layers:
            return numbered
        return tuple(f"{token}_{layer or self.layers[0]}" for token in numbered)


@runtime_checkable
class TakesWords(Protocol):
    """A family whose text encoders can be given new words."""

    word_keys: Mapping[str, str]
    """For each of these text encoders, what files of new words call its vectors."""


@runtime_checkable
class ReadsInLayers(Protocol):
    """A family each of whose denoiser's attention layers can be given a text of its own."""

    text_layers: tuple[str, ...]
    """Names of these layers in execution order, as files of new words have them."""


class Tokenizers(Generic[T]):
    """A tokenizer by each text encoder's name, in order, loaded when first asked for.

    Whoever adds words puts a tokenizer that knows them in the place of another before anything is tokenized:
    training, caches, previews and generation all read captions through these.

    Args:
        loaders: what loads each; UserError where one is nowhere to be found.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], T]]) -> None:
        self._loaders = dict(loaders)
        self._loaded: dict[str, T] = {}

    def __getitem__(self, part: str) -> T:
        if part not in self._loaded:
            self._loaded[part] = self._loaders[part]()
        return self._loaded[part]

    def __setitem__(self, part: str, tokenizer: T) -> None:
        if part not in self._loaders:
            raise ValueError(f"{part} is no text encoder here; known: {', '.join(self._loaders)}")
        self._loaded[part] = tokenizer

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)
