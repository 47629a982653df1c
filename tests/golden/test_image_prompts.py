"""Prompts of gen_img: variants, options behind prompts, seeds and names give what sd-scripts gives."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sfumato.sampling.prompts import variants
from tests.golden.derived import cases

PROMPTS = cases("k_gen_prompts")
VARIANTS = [case for case in PROMPTS if "variant" in case]
IN_ORDER = [case for case in VARIANTS if "python_seed" in case]
BY_SEED = [case for case in VARIANTS if "seeds" in case]


def drawn_in_order(case: dict[str, Any], rng: random.Random) -> list[str]:
    """Return the prompts of a case: as many as asked for or, if choices are enumerated, one of each."""
    texts = variants.enumerated(case["variant"])
    if len(texts) == 1 and variants.has_variants(texts[0]):
        texts *= case["repeat"]
    return [variants.drawn(text, rng) for text in texts]


@pytest.mark.parametrize("case", IN_ORDER, ids=[case["id"] for case in IN_ORDER])
def test_variants_are_drawn_as_recorded(case: dict[str, Any]) -> None:
    rng = random.Random(case["python_seed"])
    found = drawn_in_order(case, rng)
    if "error" not in case:
        assert found == case["result"]
        assert rng.random() == case["next_random"]
    elif "right" in case:
        assert found == case["right"]
    else:
        assert found in (["a"], ["b"])


@pytest.mark.parametrize("case", BY_SEED, ids=[case["id"] for case in BY_SEED])
def test_variants_that_belong_to_a_seed_are_drawn_as_recorded(case: dict[str, Any]) -> None:
    texts = variants.enumerated(case["variant"]) * case["repeat"]
    found = [variants.drawn_for_seed(text, seed) for text, seed in zip(texts, case["seeds"], strict=True)]
    assert found == case["result"]
