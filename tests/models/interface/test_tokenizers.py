"""Tokenizers that are given to a family: loaded when asked for, and replaced for good."""

import pytest

from sfumato.models.interface.tokenizers import Tokenizers


def test_a_tokenizer_is_loaded_once_and_only_when_it_is_asked_for() -> None:
    loaded = []

    def load(name: str) -> str:
        loaded.append(name)
        return name.upper()

    tokenizers = Tokenizers({"a": lambda: load("a"), "b": lambda: load("b")})
    assert list(tokenizers) == ["a", "b"]
    assert [tokenizers["b"], tokenizers["b"]] == ["B", "B"]
    assert loaded == ["b"]


def test_another_encoder_gets_none() -> None:
    tokenizers = Tokenizers({"a": lambda: 1})
    with pytest.raises(ValueError, match="known: a"):
        tokenizers["c"] = 2
