"""A model knows words in its tokenizers and encoders, and caches tell encoders with them from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.adapters.words.bundle import bundled_words
from sfumato.adapters.words.embedding_file import embedding_of
from sfumato.adapters.words.extended_embedding import ExtendedEmbedding, table_of
from sfumato.adapters.words.vocabulary import LearnedWord, Vocabulary
from sfumato.config.run.training.words import JoinedWordConfig
from sfumato.errors import UserError
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.families.sdxl.layout import TEXT_1, TEXT_2
from sfumato.models.interface.tokenizers import Word
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyCheckpoint:
    return tiny.sdxl(tmp_path_factory.mktemp("words"), depths=(0, 1, 1))


def taught(model: tiny.TinyCheckpoint, *words: tuple[Word, Tensor]) -> tuple[SdxlFamily, Vocabulary]:
    family: Any = SdxlFamily(model.path, tokenizers=model.tokenizers)
    return family, Vocabulary(family, [LearnedWord(word, {TEXT_1: vectors}) for word, vectors in words])


def test_an_encoder_with_words_has_their_vectors_and_another_mark(model: tiny.TinyCheckpoint) -> None:
    two, one = torch.randn(2, 64), torch.randn(1, 64)
    family, vocabulary = taught(model, (Word("zxqk", 2), two), (Word("qqq"), one))
    encoder = family.load(TEXT_1, torch.float32, CPU)
    plain = table_of(encoder).weight
    vocabulary(TEXT_1, encoder, CPU)
    table, tokenizer = table_of(encoder), family.tokenizers[TEXT_1]
    assert isinstance(table, ExtendedEmbedding)
    [ids] = tokenizer.ids(["cat zxqk qqq"])
    assert torch.equal(table(torch.tensor(ids)), torch.cat([plain[ids[:1]], two, one]))
    marks = [vocabulary.mark(TEXT_1), taught(model, (Word("zxqk", 2), two))[1].mark(TEXT_1)]
    assert len({*marks, taught(model, (Word("other", 2), two))[1].mark(TEXT_1)}) == 3
    assert taught(model, (Word("zxqk", 2), two))[1].mark(TEXT_1) == marks[1]
    assert vocabulary.mark(TEXT_2) == ""
    assert family.tokenizers[TEXT_2].words == ()


def test_vectors_of_another_width_are_refused_before_a_model_is_loaded(model: tiny.TinyCheckpoint) -> None:
    with pytest.raises(UserError, match="vectors of 5 numbers"):
        taught(model, (Word("zxqk"), torch.zeros(1, 5)))


@pytest.mark.parametrize("name", ["string_to_param.*", "clip_l"])
def test_a_word_that_came_with_an_adapter_may_have_dots(name: str) -> None:
    family: Any = SdFamily(None)
    [word] = bundled_words(Path("x"), {f"bundle_emb.v1.5 cat.{name}": torch.ones(2, 64)}, family)
    assert (word.word.text, word.word.num_vectors) == ("v1.5 cat", 2)


def test_a_word_that_names_its_file_has_no_folders() -> None:
    with pytest.raises(UserError, match="--train_words is 'a/b', which cannot name a file; choose another"):
        JoinedWordConfig(train_words="a/b")
    JoinedWordConfig(train_words="a/b", bundle_words=True)


def test_vectors_that_no_text_encoder_takes_are_named(caplog: pytest.LogCaptureFixture) -> None:
    tensors = {"clip_l": torch.ones(2, 64), "t5xxl": torch.ones(2, 32)}
    found = embedding_of(Path("x.safetensors"), tensors, ["clip_l", "clip_g"])
    assert [*found.vectors] == ["clip_l"]
    assert caplog.messages == ["x.safetensors: no text encoder of this model takes its t5xxl, left out"]
