"""Captions that are listed are those that processing draws."""

from __future__ import annotations

import random

import pytest

from sfumato.data.captions import variants
from sfumato.data.captions.captions import CaptionSettings, process


@pytest.mark.parametrize(
    ("caption", "settings"),
    [
        ("a cat", CaptionSettings(caption_prefix="x,")),
        ("a cat", CaptionSettings(caption_dropout_rate=0.5)),
        ("a cat", CaptionSettings(caption_dropout_rate=1.0)),
        ("a cat", CaptionSettings(caption_dropout_every_n_epochs=1)),
        ("a cat", CaptionSettings(caption_dropout_every_n_epochs=3, caption_dropout_rate=0.2)),
        ("a {b|c} {d|e|b}\n{{f}}\ng", CaptionSettings(enable_wildcard=True, caption_suffix="h{i|j}")),
        ("a {b|b}", CaptionSettings(enable_wildcard=True, caption_dropout_every_n_epochs=2)),
    ],
)
def test_what_is_listed_is_what_is_drawn(caption: str, settings: CaptionSettings) -> None:
    drawn = {
        process(caption, settings, random.Random(seed), epoch=epoch)
        for seed in range(200)
        for epoch in range(1, 7)
    }
    found = variants.listed(caption, settings)
    assert found is not None
    assert len(found) == len(set(found))
    assert set(found) == drawn


def test_up_to_64_combinations_are_listed() -> None:
    settings = CaptionSettings(enable_wildcard=True)
    found = variants.listed(" ".join(["{a|b}"] * 6), settings)
    assert found is not None
    assert len(found) == 64
    assert variants.listed(" ".join(["{a|b}"] * 7), settings) is None
    assert variants.listed("{a|b}" * 100, settings) is None


def test_settings_that_move_tags_are_endless() -> None:
    settings = CaptionSettings(shuffle_caption=True, enable_wildcard=True, caption_tag_dropout_rate=0.1)
    assert variants.endless(settings) == ["shuffle_caption", "caption_tag_dropout_rate"]
