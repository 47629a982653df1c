"""Masks of what is repainted: how much of an image they cover, and how often each kind is drawn."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from sfumato.data.images import inpaint_masks
from sfumato.data.images.inpaint_masks import Kind, Outline


def test_masks_cover_a_tenth_to_six_tenths_of_an_image() -> None:
    shares = [float(inpaint_masks.draw((96, 64), random.Random(seed)).float().mean()) for seed in range(200)]
    print(f"coverage {min(shares):.3f} to {max(shares):.3f}, mean {sum(shares) / len(shares):.3f}")
    assert 0.09 < min(shares) < 0.13
    assert 0.57 < max(shares) < 0.605
    assert abs(sum(shares) / len(shares) - 0.35) < 0.03


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (512, 768)])
def test_a_mask_covers_the_share_that_was_drawn(size: tuple[int, int]) -> None:
    for seed in range(20):
        mask = inpaint_masks.draw(size, random.Random(seed))
        assert mask.dtype is torch.bool
        assert mask.shape == (1, size[1], size[0])
        outline = inpaint_masks.draw_outline(random.Random(seed))
        # The sides of a rectangle are whole pixels.
        assert float(mask.float().mean()) == pytest.approx(outline.coverage, abs=1 / 64)


def test_clouds_polygons_and_simple_shapes_are_a_third_each() -> None:
    rng, num = random.Random(0), 9000
    outlines = [inpaint_masks.draw_outline(rng) for _ in range(num)]
    kinds = Counter(outline.kind for outline in outlines)
    expected = {"cloud": 1 / 3, "polygon": 1 / 3, "rectangle": 1 / 6, "ellipse": 1 / 6}
    assert {kind: count / num for kind, count in kinds.items()} == pytest.approx(expected, abs=0.02)
    joined = [outline for outline in outlines if outline.joined]
    assert {outline.kind for outline in joined} == {"cloud"}
    assert len(joined) / kinds["cloud"] == pytest.approx(0.33, abs=0.03)


def test_equal_generators_draw_equal_masks() -> None:
    first, again, other = (inpaint_masks.draw((64, 64), random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["rectangle", "ellipse"])
def test_a_shape_within_the_image_fills_its_box_as_it_must(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inpaint_masks, "draw_outline", lambda _: Outline(kind, None, 0.1))
    filled = []
    for seed in range(40):
        mask = inpaint_masks.draw((64, 64), random.Random(seed))[0]
        if not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()):
            filled.append(float(mask[mask.any(1)][:, mask.any(0)].float().mean()))
    assert len(filled) > 5
    assert filled == pytest.approx([1.0 if kind == "rectangle" else math.pi / 4] * len(filled), abs=0.05)
