"""Control images: pixel for pixel where their images are, beside masks, live and under cached latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.caching.latents import fill_latents
from sfumato.data.batches import dataset
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from tests.caching.fake import family
from tests.data.folders import folder, pixels, plan, subset

SIZES = [(96, 48), (96, 48), (48, 96)]


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """Images; for each, in `control`, a copy of it, and in `masks`, another image."""
    path = folder(tmp_path / "cats", SIZES)
    folder(tmp_path / "control", SIZES)
    folder(tmp_path / "masks", SIZES)
    return path


def read(cats: Path, **options: object) -> TrainingSet:
    beside = {"control_dir": cats.with_name("control"), "mask_dir": cats.with_name("masks")}
    return dataset.read([plan(subset(cats, **{**beside, **options}), batch_size=4)], seed=1)


def shown(made: TrainingSet) -> list[Batch]:
    return [made[p] for epoch in (1, 2, 3) for p in made.batches(epoch)]


def test_a_control_image_is_cut_and_mirrored_as_its_image_is(cats: Path) -> None:
    batches = shown(read(cats, flip_aug=True, random_crop=True))
    assert len(batches) == 6
    for batch in batches:
        assert batch.pixels is not None
        assert batch.control is not None
        assert batch.control.shape == (len(batch), 3, *batch.pixels.shape[2:])
        assert torch.equal(batch.control, batch.pixels)
        # The mask of each image is its red channel, in [0, 1] instead of [-1, 1].
        assert batch.masks is not None
        assert torch.allclose(batch.masks, batch.pixels[:, :1] / 2 + 0.5)


def test_colours_of_images_vary_and_those_of_control_images_do_not(cats: Path) -> None:
    varied, plain = (shown(read(cats, color_aug=tints)) for tints in (True, False))
    assert any(not torch.equal(one.pixels, other.pixels) for one, other in zip(varied, plain, strict=True))
    for one, other in zip(varied, plain, strict=True):
        assert torch.equal(one.control, other.control)


@pytest.mark.parametrize("to_disk", [False, True])
def test_cached_latents_have_the_control_images_of_live_ones(cats: Path, to_disk: bool) -> None:
    options = {"flip_aug": True, "resize_interpolation": "nearest"}
    live, cached = read(cats, **options), read(cats, **options)
    _, as_family, parts = family(cats.parent)
    fill_latents(cached, as_family, parts, to_disk=to_disk)
    for one, other in zip(shown(live), shown(cached), strict=True):
        assert other.latents is not None
        assert other.paths == one.paths
        assert torch.equal(other.control, one.control)


def test_another_control_image_leaves_cached_latents_as_they_are(cats: Path) -> None:
    for num in (2, 0):
        made = read(cats)
        fake, as_family, parts = family(cats.parent)
        fill_latents(made, as_family, parts, to_disk=True)
        assert len(fake.num_encoded) == (3 if num else 0)
        Image.fromarray(pixels("other", 96, 48)).save(cats.with_name("control") / "im0.png")


def test_an_image_whose_control_image_decodes_badly_is_replaced(cats: Path) -> None:
    made = read(cats)
    broken = cats.with_name("control") / "im0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (batch,) = (made[p] for p in made.batches(1) if len(p.items) == 2)
    assert batch.skipped == (str(cats / "im0.png"),)
    assert [Path(path).name for path in batch.paths] == ["im1.png", "im1.png"]


def test_transparency_may_be_the_mask_beside_a_control_image(cats: Path) -> None:
    alpha = np.full((48, 96), 0, np.uint8)
    Image.fromarray(np.dstack([pixels("im0.png", 96, 48), alpha])).save(cats / "im0.png")
    (batch,) = (b for b in shown(read(cats, mask_dir=None, alpha_mask=True))[:2] if len(b) == 2)
    assert batch.control is not None
    assert batch.masks is not None
    assert sorted(batch.masks.mean((1, 2, 3)).tolist()) == [0.0, 1.0]
