"""Masks of what is repainted come with the images of data sets that ask for them, and with no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.caching.latents import require_constant_images
from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader
from sfumato.errors import UserError
from tests.data.folders import folder, plan, subset

SIZES = [(96, 48), (96, 48), (48, 96)]


def read(cats: Path, *, inpaints: bool = True) -> TrainingSet:
    asked = plan(subset(cats, flip_aug=True), batch_size=2, train_inpainting=inpaints)
    return dataset.read([asked], seed=1)


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    return folder(tmp_path / "cats", SIZES)


def test_masks_are_of_the_images_size_and_other_ones_in_each_epoch(cats: Path) -> None:
    made = read(cats)
    shown = [made[p] for epoch in (1, 2) for p in made.batches(epoch)]
    masks = {}
    for batch in shown:
        assert batch.pixels is not None
        assert batch.inpaint_masks is not None
        assert batch.inpaint_masks.shape == (len(batch), 1, *batch.pixels.shape[2:])
        for path, mask in zip(batch.paths, batch.inpaint_masks, strict=True):
            masks.setdefault(path, []).append(mask)
    assert sum(not torch.equal(*both) for both in masks.values()) == len(SIZES)


def test_masks_do_not_change_what_else_is_drawn(cats: Path) -> None:
    masked, plain = (read(cats, inpaints=inpaints) for inpaints in (True, False))
    for plan_ in masked.batches(1):
        one, other = masked[plan_], plain[plan_]
        assert one.pixels is not None
        assert other.pixels is not None
        assert torch.equal(one.pixels, other.pixels)
        assert other.inpaint_masks is None


def test_masks_are_the_same_whatever_loads_them(cats: Path) -> None:
    made = read(cats)
    loaded = list(Loader(made, num_workers=2)(made.batches(3)))
    for plan_, batch in zip(made.batches(3), loaded, strict=True):
        here = made[plan_].inpaint_masks
        assert here is not None
        assert batch.inpaint_masks is not None
        assert torch.equal(here, batch.inpaint_masks)


def test_what_masks_leave_has_no_cache(cats: Path) -> None:
    with pytest.raises(UserError, match="excludes train_inpainting"):
        require_constant_images(read(cats))
    require_constant_images(read(cats, inpaints=False))
