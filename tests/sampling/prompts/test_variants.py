"""Variants in prompts, beyond what is recorded of sd-scripts."""

from __future__ import annotations

import logging
import random
from collections import Counter

import pytest

from sfumato.errors import UserError
from sfumato.sampling.prompts import variants


def test_each_variant_is_drawn_about_as_often() -> None:
    rng = random.Random(1)
    counts = Counter(variants.drawn("{a|b|c}", rng) for _ in range(3000))
    assert all(900 < counts[letter] < 1100 for letter in "abc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{e$$a {x|y}|b}", ["a {x|y}", "b"]),
        ("{q|{e$$a|b}}", ["{q|a}", "{q|b}"]),
        (r"\{lit\} {e$$a|b}", [r"\{lit\} a", r"\{lit\} b"]),
        ("{e$$a|{e$$b|c}}", ["a", "b", "a", "c"]),
        ("no braces", ["no braces"]),
    ],
)
def test_enumeration_leaves_the_other_groups_and_escapes(text: str, expected: list[str]) -> None:
    assert variants.enumerated(text) == expected


def test_too_many_choices_are_refused_before_they_fill_the_memory() -> None:
    assert len(variants.enumerated("{e$$0-13$$a|b|c|d|e|f|g|h|i|j|k|l|m}")) == 2**13
    with pytest.raises(UserError, match="more than 10,000 prompts"):
        variants.enumerated("{e$$0-60$$" + "|".join("a" * 60) + "}")


def test_a_choice_belongs_to_the_seed_of_its_image() -> None:
    text = "a {red|blue|green} {cat|dog|{big|small} house}"
    found = [variants.drawn_for_seed(text, seed) for seed in range(40)]
    assert found == [variants.drawn_for_seed(text, seed) for seed in range(40)]
    assert len(set(found)) > 6


def test_a_count_without_a_bound_is_one_and_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("sfumato"), "propagate", True)
    assert variants.drawn("{-2$$a|b}", random.Random(0)) in ("a", "b")
    assert "-2 is no number of variants" in caplog.text


@pytest.mark.parametrize(("text", "has_some"), [("a {b}", True), ("{}", False), (r"\{a|b\}", False)])
def test_braces_are_told_from_text(text: str, has_some: bool) -> None:
    assert variants.has_variants(text) == has_some
