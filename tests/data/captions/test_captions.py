from __future__ import annotations

import random

import pytest

from sfumato.data.captions.captions import CaptionSettings, process, tags
from tests.golden.derived import settings

FIXTURE = settings("d_captions")


@pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda case: case["id"])
def test_captions_and_random_draws_equal_those_of_sd_scripts(case: dict) -> None:
    rng = random.Random(case["seed"])
    settled = CaptionSettings(**{**FIXTURE["defaults"], **case["settings"]})
    caption = process(
        case["caption"],
        settled,
        rng,
        epoch=case["epoch"],
        step=case["step"],
        max_steps=case["max_train_steps"],
        replacements=case["replacements"],
    )
    expected = case["output"]
    if settled.caption_separator != ",":  # recorded when a comma was put between tags whatever was asked
        expected = expected.replace(",", settled.caption_separator)
    assert caption == expected
    assert rng.random() == case["next_python_random"]


def test_settings_that_are_off_do_not_vary() -> None:
    assert CaptionSettings(keep_tokens=3, caption_prefix="p").varying() == []
    varying = CaptionSettings(shuffle_caption=True, caption_dropout_rate=0.1).varying()
    assert varying == ["shuffle_caption", "caption_dropout_rate"]


def test_statistics_count_tags_in_lower_case_without_blanks() -> None:
    assert tags(" Cat, , DOG ,a b") == ["cat", "dog", "a b"]
    assert tags("a, b ||| C, d ||| e", "|||") == ["a", "b", "c", "d", "e"]
