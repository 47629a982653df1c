"""New words in a tokenizer: found as they are written, spelt out in all their vectors."""

from __future__ import annotations

import pytest

from sfumato.errors import UserError
from sfumato.models.components.tokenizers import Tokenizer, load_clip
from sfumato.models.interface.tokenizers import Word
from tests.vocabularies import write_clip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("words")
    write_clip(folder / "clip", num_merges=2000)
    return load_clip("clip", cache_dir=folder)


def test_a_word_has_an_id_for_each_vector_behind_all_others(tokenizer: Tokenizer) -> None:
    taught = tokenizer.with_words([Word("zxqk", 3)])
    [known] = tokenizer.ids(["the cat"])
    assert taught.ids(["the zxqk, (zxqk) cat"]) == [
        [
            known[0],
            49408,
            49409,
            49410,
            *taught.ids([", ("])[0],
            49408,
            49409,
            49410,
            *taught.ids([") cat"])[0],
        ]
    ]
    assert (tokenizer.size, taught.size) == (49408, 49411)
    assert taught.count(["zxqk"]) == [3]


def test_of_words_that_overlap_the_longest_counts(tokenizer: Tokenizer) -> None:
    taught = tokenizer.with_words([Word("zxqk", 2), Word("zxqk-two", 1)])
    assert taught.ids(["zxqk-two zxqk"]) == [[49410, 49408, 49409]]


@pytest.mark.parametrize("word", [Word("the"), Word("<|endoftext|>")])
def test_a_known_word_is_refused(word: Word, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="is in the vocabulary already; choose another word"):
        tokenizer.with_words([word])
    taught = tokenizer.with_words([Word("zxqk", 2)])
    with pytest.raises(UserError, match="'zxqk1' is in the vocabulary"):
        taught.with_words([Word("zxqk1")])
