"""Emphasis beside what was recorded: blanks before a number, and backslashes alone."""

from __future__ import annotations

import pytest

from sfumato.models.components import emphasis


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("(k: 1.2)", [("k: 1.2", 1.1)]),
        ("(k:1.2 )", [("k:1.2 ", 1.1)]),
        ("a\\b (c\\d:2)", [("ab ", 1.0), ("cd", 2.0)]),
        ("end\\", [("end", 1.0)]),
        ("\\(x\\)", [("(x)", 1.0)]),
    ],
)
def test_blanks_make_a_weight_text_and_a_lone_backslash_is_dropped(
    prompt: str, expected: list[tuple[str, float]]
) -> None:
    assert emphasis.parse(prompt) == expected
