"""Tokenizers: finding their files, and turning texts into token ids exactly as sd-scripts does.

Files are looked for in `--tokenizer_cache_dir` (one folder per tokenizer, named like the hub's model with `_`
for `/`), in a folder that the model brings along, in the hub's local cache, and only then on the hub.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sfumato import installing
from sfumato.errors import UserError, guest_code
from sfumato.hub import cache
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.hub.fetching import fetched_files
from sfumato.hub.names import HubName
from sfumato.lean_imports import lean
from sfumato.models.interface.tokenizers import Word

if TYPE_CHECKING:
    from transformers import AddedToken, PreTrainedTokenizerBase

CLIP_L = "openai/clip-vit-large-patch14"
T5_XXL = "google/t5-v1_1-xxl"

CLIP_LENGTH = 77
"""Positions of every CLIP text encoder, start and end token included."""

# A limit must be given, or transformers warns that texts are longer than some model takes.
_ANY_LENGTH = 2**20


class Tokens(NamedTuple):
    """Padded token ids and which of them are real: both (B, L) int64, mask 1 = real, 0 = padding."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Tokenizer:
    """Turns texts into ids of one vocabulary.

    Attributes:
        vocabulary: the transformers tokenizer that does the work.
        mends_text: repair mangled Unicode first, as the original CLIP tokenizer does; without it, ids of
            such texts differ from those that CLIP was trained with.
        words: new words, in the order of their ids.
        layer: of the denoiser, whose vectors of words are meant where layers have their own.
        names_vectors: whether `word1` is the second vector of `word` alone, instead of all and a 1.
    """

    vocabulary: PreTrainedTokenizerBase
    mends_text: bool
    words: tuple[Word, ...] = ()
    layer: str = ""
    names_vectors: bool = False

    def with_words(self, words: Sequence[Word]) -> Tokenizer:
        """Return a tokenizer that knows new words, too; their ids follow each other behind all others.

        Raises:
            UserError: a word, or one of its tokens, is known already.
        """
        vocabulary: Any = copy.deepcopy(self.vocabulary)
        for word in words:
            known = vocabulary.get_vocab().keys()
            if taken := next((token for token in word.tokens if token in known), None):
                raise UserError(f"{word.origin}: {taken!r} is in the vocabulary already; {word.remedy}")
            vocabulary.add_tokens([_as_written(token) for token in word.tokens])
        return replace(self, vocabulary=vocabulary, words=(*self.words, *words))

    def by_layer(self) -> list[Tokenizer]:
        """Return a tokenizer for each of the denoiser's layers; none where all read alike."""
        layers = () if self.layer else next((word.layers for word in self.words if word.layers), ())
        return [replace(self, layer=layer) for layer in layers]

    @property
    def size(self) -> int:
        """How many tokens are known; a new word's ids begin there."""
        vocabulary: Any = self.vocabulary
        return len(vocabulary)

    def __call__(self, texts: Sequence[str], length: int) -> Tokens:
        """Return (B, length) tokens, cut or padded to `length` with the start and end token included."""
        out = self.vocabulary(
            self._mend(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return Tokens(out["input_ids"], out["attention_mask"])

    def windows(self, texts: Sequence[str], num: int, length: int = CLIP_LENGTH) -> Tensor:
        """Spread long texts over several encoder inputs, each with its own start and end token.

        Args:
            num: windows per text; what does not fit in them is cut off.
            length: tokens per window, start and end token included.

        Returns:
            (B, num, length) int64; a window that the text does not reach holds start, end and padding.
        """
        inner = length - 2
        content = self._ids(texts, num * inner)
        rows = [
            [self.framed(ids[i * inner : (i + 1) * inner], length) for i in range(num)] for ids in content
        ]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), num, length)

    def weighted_windows(
        self, texts: Sequence[Sequence[tuple[str, float]]], num: int, length: int = CLIP_LENGTH
    ) -> tuple[Tensor, Tensor]:
        """Spread texts whose pieces have weights over encoder inputs as `windows` does.

        Args:
            texts: the pieces of each text with their weights; a piece is read without its neighbours.

        Returns:
            (B, num, length) ids int64 and weights float32; start, end and padding weigh 1.
        """
        inner = length - 2
        id_rows, weight_rows = [], []
        for pieces in texts:
            found = self._ids([text for text, _ in pieces], num * inner)
            ids = [number for row in found for number in row][: num * inner]
            weights = [weight for row, (_, weight) in zip(found, pieces, strict=True) for _ in row]
            starts = range(0, num * inner, inner)
            id_rows.append([self.framed(ids[at : at + inner], length) for at in starts])
            weight_rows.append([_framed(weights[at : at + inner], length) for at in starts])
        shape = (len(id_rows), num, length)
        return torch.tensor(id_rows).reshape(shape), torch.tensor(weight_rows).reshape(shape)

    @property
    def padding(self) -> int:
        """The id that fills what a text leaves over."""
        vocabulary: Any = self.vocabulary
        return vocabulary.pad_token_id

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, however many they are, without start and end token."""
        return self._ids(texts, _ANY_LENGTH)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, start and end not counted, however many they are."""
        return [len(ids) for ids in self.ids(texts)]

    def rest(self, text: str, length: int) -> str:
        """Return what is left of `text` behind its first `length` tokens."""
        [mended] = self._mend([text])
        vocabulary: Any = self.vocabulary
        found = vocabulary(
            mended,
            add_special_tokens=False,
            truncation=True,
            max_length=_ANY_LENGTH,
            return_offsets_mapping=True,
        )
        spans = found["offset_mapping"]
        return mended[spans[length][0] :].strip() if len(spans) > length else ""

    def content(self) -> list[int]:
        """Return the ids that texts are made of, in order: all but the start and end token."""
        vocabulary: Any = self.vocabulary
        frame = {vocabulary.bos_token_id, vocabulary.eos_token_id}
        return sorted(set(vocabulary.get_vocab().values()) - frame)

    def framed(self, ids: Sequence[int], length: int = CLIP_LENGTH) -> list[int]:
        """Return ids between the start and end token, padded to `length`."""
        vocabulary: Any = self.vocabulary
        framed = [vocabulary.bos_token_id, *ids, vocabulary.eos_token_id]
        return framed + [vocabulary.pad_token_id] * (length - len(framed))

    def _ids(self, texts: Sequence[str], most: int) -> list[list[int]]:
        """Return the ids of each text without start and end token, `most` at most."""
        found = self.vocabulary(self._mend(texts), add_special_tokens=False, truncation=True, max_length=most)
        return found["input_ids"]

    def _mend(self, texts: Sequence[str]) -> list[str]:
        if self.mends_text:
            import ftfy

            texts = [ftfy.fix_text(text) for text in texts]
        own = {word.text: word.tokens_in(self.layer) for word in self.words}
        single = (token for found in own.values() for token in found[1:]) if self.names_vectors else ()
        tokens = {**{token: (token,) for token in single}, **own}
        return [_spelt_out(text, tokens) for text in texts]


def _as_written(token: str) -> AddedToken:
    """Return a token that is found as it is written, within words, too, and in no other spelling."""
    with lean():
        from transformers import AddedToken

    return AddedToken(token, normalized=False)


def _spelt_out(text: str, words: Mapping[str, tuple[str, ...]]) -> str:
    """Return a text with all tokens of each new word; of words that overlap the longest counts."""
    if not words:
        return text
    longest_first = sorted(words, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda match: " ".join(words[match[0]]), text)


def _framed(weights: Sequence[float], length: int) -> list[float]:
    return [1.0, *weights, *[1.0] * (length - 1 - len(weights))]


def load_clip(
    name: str = CLIP_L,
    *,
    cache_dir: Path | None = None,
    bundled_dir: Path | None = None,
    pad_token: str | None = None,
    access: HubAccess = ANYBODY,
) -> Tokenizer:
    """Load a CLIP tokenizer.

    Args:
        name: the hub's model id.
        cache_dir: `--tokenizer_cache_dir`, which comes first; what comes from the hub is kept there.
        bundled_dir: folder that the model brings along, laid out like `cache_dir`.
        pad_token: what fills the rest; the end token where None. The OpenCLIP encoders want "!".
        access: how the hub is reached.

    Raises:
        UserError: the files are nowhere to be found, or cannot be read.
    """
    with lean():
        from transformers import CLIPTokenizer

    files = _find(name, _CLIP_FILES, cache_dir, bundled_dir, access)
    options = {} if pad_token is None else {"pad_token": pad_token}
    return _tried(Tokenizer(_read(CLIPTokenizer, files, options), mends_text=True), files, is_framed=True)


def load_t5(
    name: str = T5_XXL,
    *,
    cache_dir: Path | None = None,
    bundled_dir: Path | None = None,
    access: HubAccess = ANYBODY,
) -> Tokenizer:
    """Load a T5 tokenizer; arguments and errors as for `load_clip`."""
    with lean():
        from transformers import T5Tokenizer

    files = _find(name, _T5_FILES, cache_dir, bundled_dir, access)
    if not (files / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        remedy = installing.command("sentencepiece")
        raise UserError(f"{files / 'spiece.model'} needs a package to be read: run {remedy}")
    return _tried(Tokenizer(_read(T5Tokenizer, files, {}), mends_text=False), files, is_framed=False)


# Each line is enough to build the tokenizer. transformers makes an empty one, silently, where none is there.
_CLIP_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_T5_FILES = (("tokenizer.json",), ("spiece.model",))

# What a tokenizer's folder may hold besides; everything else in a model's repository is weights.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

Sufficient = tuple[tuple[str, ...], ...]


def _find(
    name: str,
    sufficient: Sufficient,
    cache_dir: Path | None,
    bundled_dir: Path | None,
    access: HubAccess,
) -> Path:
    """Return the folder with the tokenizer's files, asking the hub last."""
    wanted = name.replace("/", "_")
    for parent in (cache_dir, bundled_dir):
        if parent is not None and _is_complete(parent / wanted, sufficient):
            return parent / wanted
    found = _from_hub(name, sufficient, access)
    if found is None:
        given = f"is {cache_dir}" if cache_dir else "is not given"
        files = " or ".join(" and ".join(files) for files in sufficient)
        raise UserError(
            f"--tokenizer_cache_dir {given}: the tokenizer {name} is not there, nor in the hub's cache, "
            f"nor to be had from the hub; give a folder whose sub-folder {wanted} holds {files}"
        )
    return found if cache_dir is None else _keep(found, cache_dir / wanted, sufficient)


def _is_complete(folder: Path, sufficient: Sufficient) -> bool:
    return any(all((folder / file).is_file() for file in files) for files in sufficient)


def _from_hub(name: str, sufficient: Sufficient, access: HubAccess) -> Path | None:
    """Return the hub's local folder for this tokenizer, fetching its files unless they are there."""
    kept = cache.snapshot(HubName(name))
    if kept is not None and _is_complete(kept, sufficient):
        return kept
    files = [*_SETTINGS, *(file for files in sufficient for file in files)]
    folder = fetched_files(HubName(name), files, f"the tokenizer {name}", access)
    return folder if folder is not None and _is_complete(folder, sufficient) else None


def _keep(source: Path, folder: Path, sufficient: Sufficient) -> Path:
    """Copy a tokenizer's files, so that the next run needs neither the hub nor its cache."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*_SETTINGS, *(file for files in sufficient for file in files)):
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    return folder


def _read(kind: Any, folder: Path, options: dict[str, str]) -> PreTrainedTokenizerBase:
    with guest_code(f"{folder}: these tokenizer files cannot be read"):
        return kind.from_pretrained(str(folder), local_files_only=True, **options)


def _tried(tokenizer: Tokenizer, folder: Path, *, is_framed: bool) -> Tokenizer:
    """Return a tokenizer that can turn a text into ids; files that are half right lack what frames one.

    Raises:
        UserError: it cannot.
    """
    with guest_code(f"{folder}: these tokenizer files are not complete", "use all files of one tokenizer"):
        ids = tokenizer.windows([_TRIAL], 1) if is_framed else tokenizer([_TRIAL], len(_TRIAL)).ids
        if ids.min() < 0:
            raise ValueError(f"an id is {ids.min()}")
    return tokenizer


_TRIAL = "a cat, 1"
