"""Emphasis in prompts: read where the family can, without moving an output's mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.models.components import emphasis
from sfumato.models.interface.parts import Parts
from sfumato.sampling.encoding import encode_prompt, tokenize_prompt
from sfumato.sampling.pipeline import Pipeline
from tests.sampling.fake import FakeFamily


class EmphaticFamily(FakeFamily):
    """The first encoder reads emphasis: a word a token, eight of them."""

    def tokenize_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        pieces = [[(word, w) for text, w in emphasis.parse(p) for word in text.split()] for p in prompts]
        rows = [row[:8] + [("", 1.0)] * (8 - len(row)) for row in pieces]
        plain = self.tokenize([" ".join(word for word, _ in row) for row in rows])
        return plain | {"first_weights": torch.tensor([[weight for _, weight in row] for row in rows])}

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        outputs = super().encode_text(encoders, tokens)
        if "first_weights" in tokens:
            outputs["a"] = outputs["a"] * tokens["first_weights"]
        return outputs


def encoded(family: Any, prompt: str) -> dict[str, Tensor]:
    pipeline = Pipeline(family, Parts(family, torch.device("cpu")), dtype=torch.float32)
    return dict(pipeline.encode([prompt])[prompt])


def test_brackets_are_text_where_the_family_knows_no_emphasis() -> None:
    family: Any = FakeFamily()
    assert "first_weights" not in tokenize_prompt(family, "a (cat:2)")
    assert not torch.equal(encoded(family, "a (cat:2)")["a"], encoded(family, "a cat")["a"])


def test_a_prompt_without_emphasis_is_encoded_once() -> None:
    family = EmphaticFamily()
    outputs = encoded(family, "a cat")
    assert torch.equal(outputs["a"], encoded(FakeFamily(), "a cat" + " " * 6)["a"])
    assert family.encoded == [("first", 1), ("second", 1)]


def test_emphasis_changes_the_relations_and_keeps_the_mean() -> None:
    plain, weighted = (encoded(EmphaticFamily(), prompt) for prompt in ("a cat", "a (cat:1.5)"))
    ratios = (weighted["a"] / plain["a"])[0]
    assert torch.allclose(ratios[1], 1.5 * ratios[0])
    assert torch.allclose(ratios[0], ratios[2])
    assert torch.allclose(weighted["a"].mean(), plain["a"].mean())
    assert torch.equal(weighted["b"], plain["b"])
    assert torch.equal(weighted["mask"], plain["mask"])


def test_an_output_of_mean_zero_is_not_scaled() -> None:
    family: Any = EmphaticFamily()
    encoder = nn.Linear(8, 8)
    nn.init.zeros_(encoder.weight)
    nn.init.zeros_(encoder.bias)
    made = encode_prompt(family, "first", encoder, tokenize_prompt(family, "(cat)"))
    assert torch.equal(made["a"], torch.zeros(1, 8))
