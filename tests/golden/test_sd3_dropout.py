"""Captions go without what a text encoder says of them as in sd-scripts, where the same numbers are drawn.

There the draws of both CLIPs take turns, image by image; here each encoder draws for the whole batch.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.models.families.sd3.dropout import TextDropout, drop, without
from tests.golden.derived import cases

CASES = [case for case in cases("k_sd3_more_head") if "rates" in case]
NAMES = ("l", "g", "t5")


def words(count: int) -> dict[str, Tensor]:
    outputs = {f"{name}_out": torch.ones(count, 7, 3) for name in NAMES}
    pooled = {f"{name}_pooled": torch.ones(count, 3) for name in NAMES[:2]}
    masks = ("clip_l_attn_mask", "clip_g_attn_mask", "t5_attn_mask")
    return {**outputs, **pooled, **{name: torch.ones(count, 7, dtype=torch.int64) for name in masks}}


def drawn(case: dict[str, Any]) -> list[Tensor | None]:
    """Return which captions each encoder goes without, after the recorded numbers."""
    rates, draws = case["rates"], iter(case["draws"])
    clips = {name: [] for name in NAMES[:2]}
    for _ in range(case["batch"]):
        for name in clips:
            clips[name] += [next(draws) < rates[name]] if rates[name] else []
    t5 = [next(draws) < rates["t5"] for _ in range(case["batch"])] if rates["t5"] else []
    return [torch.tensor(found) if found else None for found in (*clips.values(), t5)]


def is_zero(output: Tensor) -> list[bool]:
    return [not row.any() for row in output]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_what_is_left_out_is_zero_as_recorded(case: dict[str, Any]) -> None:
    found = words(case["batch"])
    for encoder, is_dropped in enumerate(drawn(case)):
        found = found if is_dropped is None else dict(without(found, encoder, is_dropped))
    for result in (case["result"], case["cached_result"]):
        assert [is_zero(found[f"{name}_out"]) for name in NAMES] == [
            result[f"{name}_dropped"] for name in NAMES
        ]
        pooled = [result["pooled_l_zero"], result["pooled_g_zero"]]
        assert [is_zero(found[f"{name}_pooled"]) for name in NAMES[:2]] == pooled
        masks = ("clip_l_attn_mask", "clip_g_attn_mask", "t5_attn_mask")
        assert [is_zero(found[name]) for name in masks] == result["masks_zero"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_nothing_is_drawn_for_a_rate_of_zero(case: dict[str, Any]) -> None:
    rates, count = [case["rates"][name] for name in NAMES], case["batch"]
    rng, other = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    drop(words(count), TextDropout(*rates), rng)
    torch.rand(count * sum(rate > 0 for rate in rates), generator=other)
    assert torch.rand(1, generator=rng).item() == torch.rand(1, generator=other).item()
