"""New words inside an adapter's file, under keys `bundle_emb.WORD.*`, as A1111 and OneTrainer have them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.adapters.files.dialects.reading import BUNDLED
from sfumato.adapters.words.embedding_file import embedding_of
from sfumato.adapters.words.vocabulary import LearnedWord, word_keys
from sfumato.checkpoints.tensors import open_tensors
from sfumato.models.interface.family import Family
from sfumato.models.interface.tokenizers import Word

_ONLY = "string_to_param.*"
"""What A1111 calls the vectors of the one text encoder of Stable Diffusion 1 and 2; the star is one."""


def add_word(path: Path, word: str, vectors: Mapping[str, Tensor]) -> None:
    """Put a word into an adapter's file, whose hashes are computed anew.

    Args:
        path: a complete adapter file.
        vectors: (n, width) each, by the key of their text encoder.
    """
    with open_tensors(path) as reader:
        tensors, metadata = {key: tensor.clone() for key, tensor in reader.items()}, reader.metadata
    for key, vector in vectors.items():
        name = _ONLY if len(vectors) == 1 and not key.startswith("clip") else key
        tensors[f"{BUNDLED}{word}.{name}"] = vector.detach().cpu().clone()
    write_adapter(path, tensors, metadata)


def bundled_words(path: Path, tensors: Mapping[str, Tensor], family: Family) -> Iterator[LearnedWord]:
    """Yield the words that came with an adapter.

    Args:
        tensors: of the file, with the prefix.
    """
    words: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        word, name = word_and_name(key)
        words[word][name] = tensor
    keys = word_keys(family) if words else {}
    for text, own in words.items():
        found = embedding_of(path, own, [*keys.values()])
        vectors = {part: found.vectors[key] for part, key in keys.items() if key in found.vectors}
        word = Word(text, found.num_vectors, origin=str(path), remedy="use another file")
        yield LearnedWord(word, vectors)


def word_and_name(key: str) -> tuple[str, str]:
    """Return a word, which may have dots in it, and what the key calls the vectors."""
    word, _, name = key.removeprefix(BUNDLED).rpartition(".")
    ending = "." + _ONLY.removesuffix(".*")
    return (word.removesuffix(ending), _ONLY) if name == "*" else (word, name)
