"""Numbers in messages stand with the right word."""

import pytest

from sfumato.log import counted, plural


@pytest.mark.parametrize(("number", "text"), [(0, "0 pictures"), (1, "1 picture"), (2, "2 pictures")])
def test_a_count_agrees_with_its_noun(number: int, text: str) -> None:
    assert counted(number, "picture") == text


def test_what_is_no_plain_s_is_given() -> None:
    assert [counted(n, "batch", "batches") for n in (1, 3)] == ["1 batch", "3 batches"]
    assert [plural(n, "is", "are") for n in (0, 1, 2)] == ["are", "is", "are"]
