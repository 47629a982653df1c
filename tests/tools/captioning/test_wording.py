"""Words around captions stand there once, however often and in whatever way captions are made."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sfumato.config.tools.pictures.captioning import CaptioningConfig
from sfumato.tools.captioning.wording import Wording


def options(**values: str) -> CaptioningConfig:
    return CaptioningConfig("images", **values)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["cat", "grass"], "cat, grass"),
        (["grass", "cat"], "grass, cat"),
        (["cat on grass"], "cat on grass"),
        (["cattle on grass"], "cat, cattle on grass"),
        ([], "cat"),
    ],
)
def test_a_trigger_word_is_there_once(parts: Sequence[str], text: str) -> None:
    assert Wording(options(trigger_word="cat")).text(parts, None) == text


def test_text_around_a_caption_is_not_doubled_when_tags_are_added() -> None:
    wording = Wording(
        options(text_before="photo of ", text_behind="."),
        extended=lambda parts, before: [*before.split(", "), *parts],
    )
    assert wording.text(["dog"], "photo of cat.\n") == "photo of cat, dog."
    assert wording.text(["dog"], "cat\n") == "photo of cat, dog."
