"""Loss masks that are cached with latents: beside them in memory and on disk, and never stale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from sfumato.caching.latents import fill_latents, require_constant_images
from sfumato.data.batches import dataset
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.config.plan import SubsetPlan
from sfumato.errors import UserError
from tests.caching.fake import FakeFamily, family
from tests.data.folders import folder, image, pixels, plan, subset

SIZES = [(96, 48), (96, 48), (48, 96)]
NUM = len(SIZES)


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """Images of which the first is half transparent, and a mask for each in `masks`."""
    path = folder(tmp_path / "cats", SIZES)
    alpha = np.full((48, 96), 255, np.uint8)
    alpha[:, 48:] = 0
    Image.fromarray(np.dstack([pixels("im0.png", 96, 48), alpha])).save(path / "im0.png")
    folder(tmp_path / "masks", SIZES)
    return path


def masked(cats: Path, **options: object) -> SubsetPlan:
    return subset(cats, mask_dir=cats.with_name("masks"), **options)


def read(*subsets: SubsetPlan) -> TrainingSet:
    return dataset.read([plan(*subsets, batch_size=4)], seed=1)


def fill(root: Path, *subsets: SubsetPlan, to_disk: bool = True) -> tuple[FakeFamily, TrainingSet]:
    """Fill the caches as a fresh run would."""
    fake, as_family, parts = family(root)
    made = read(*subsets)
    fill_latents(made, as_family, parts, to_disk=to_disk)
    return fake, made


def shown(made: TrainingSet, epoch: int = 1) -> list[Batch]:
    return [made[p] for p in made.batches(epoch)]


def averaged(masks: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(masks, 8)


@pytest.mark.parametrize("to_disk", [False, True])
def test_cached_masks_are_live_ones_averaged_whatever_each_subset_asks_for(cats: Path, to_disk: bool) -> None:
    dogs = folder(cats.with_name("dogs"), SIZES)
    opaque = folder(cats.with_name("birds"), SIZES)
    subsets = [subset(cats, alpha_mask=True, flip_aug=True), subset(dogs), masked(opaque, flip_aug=True)]
    live, cached = read(*subsets), fill(cats.parent, *subsets, to_disk=to_disk)[1]
    num_masked = 0
    for epoch in (1, 2, 3):
        for one, other in zip(shown(live, epoch), shown(cached, epoch), strict=True):
            assert one.paths == other.paths
            assert (one.masks is None) == (other.masks is None)
            if one.masks is None:
                continue
            num_masked += 1
            assert other.latents is not None
            assert other.masks is not None
            assert other.masks.shape[2:] == other.latents.shape[2:]
            assert (averaged(one.masks) - other.masks).abs().max() < 1e-6
    assert num_masked > 4


def test_mirrored_images_have_the_mirrored_mask(cats: Path) -> None:
    for to_disk in (False, True):
        source = fill(cats.parent, subset(cats, alpha_mask=True, flip_aug=True), to_disk=to_disk)[1].latents
        assert source is not None
        plain, mirrored = source.mask(0, 0, False), source.mask(0, 0, True)
        assert plain is not None
        assert mirrored is not None
        assert plain[0, 0].tolist() == [1.0] * (plain.shape[2] // 2) + [0.0] * (plain.shape[2] // 2)
        assert torch.equal(plain.flip(-1), mirrored)


def test_transparency_is_kept_as_sd_scripts_keeps_it_and_other_masks_under_another_name(cats: Path) -> None:
    fill(cats.parent, subset(cats, alpha_mask=True, flip_aug=True))
    file = next(cats.glob("im0*.npz"))
    with np.load(file) as arrays:
        mask = arrays["alpha_mask_6x10"]
        assert mask.dtype == np.float32
        assert mask.shape == (48, 80)
        assert mask.mean() == 0.5
        assert not [name for name in arrays.files if "mask_flipped" in name]
    fill(cats.parent, masked(cats))
    with np.load(file) as arrays:
        assert arrays["loss_mask_6x10"].shape == (6, 10)


class TestStaleness:
    def test_a_second_start_encodes_nothing(self, cats: Path) -> None:
        for wanted in (masked(cats), subset(cats, alpha_mask=True)):
            fill(cats.parent, wanted)
            assert fill(cats.parent, wanted)[0].num_encoded == []

    def test_a_cache_without_masks_is_made_again_when_they_are_wanted(self, cats: Path) -> None:
        fill(cats.parent, subset(cats))
        assert fill(cats.parent, masked(cats))[0].num_encoded == [1] * NUM
        assert fill(cats.parent, subset(cats, alpha_mask=True))[0].num_encoded == [1] * NUM

    def test_a_run_without_masks_takes_latents_that_were_made_with_them(self, cats: Path) -> None:
        fill(cats.parent, masked(cats))
        fake, made = fill(cats.parent, subset(cats))
        assert fake.num_encoded == []
        assert all(batch.masks is None for batch in shown(made))

    def test_a_changed_mask_is_made_again_and_alone(self, cats: Path) -> None:
        fill(cats.parent, masked(cats))
        Image.new("L", (96, 48), 255).save(cats.with_name("masks") / "im1.png")
        fake, made = fill(cats.parent, masked(cats))
        assert fake.num_encoded == [1]
        assert made.latents is not None
        mask = made.latents.mask(0, 1, False)
        assert mask is not None
        assert mask.tolist() == torch.ones_like(mask).tolist()

    def test_masks_from_another_folder_are_others(self, cats: Path) -> None:
        fill(cats.parent, masked(cats))
        other = folder(cats.with_name("other"), SIZES)
        image(other / "im1.png", (48, 24))
        fake, _ = fill(cats.parent, subset(cats, mask_dir=other))
        assert fake.num_encoded == [1] * NUM

    def test_another_filter_makes_all_again(self, cats: Path) -> None:
        fill(cats.parent, subset(cats))
        assert fill(cats.parent, subset(cats, resize_interpolation="nearest"))[0].num_encoded == [1] * NUM
        assert fill(cats.parent, subset(cats))[0].num_encoded == [1] * NUM

    @pytest.mark.parametrize(("has_mask", "num_made"), [(True, 0), (False, NUM)])
    def test_files_of_sd_scripts_are_taken_with_their_masks(
        self, cats: Path, has_mask: bool, num_made: int
    ) -> None:
        wanted = subset(cats, alpha_mask=True)
        fill(cats.parent, wanted)
        dropped = ("sfumato",) if has_mask else ("sfumato", "alpha_mask")
        for file in cats.glob("*.npz"):
            with np.load(file) as arrays:
                kept = {k: arrays[k] for k in arrays.files if not k.startswith(dropped)}
            np.savez(file, **kept)
        assert sum(fill(cats.parent, wanted)[0].num_encoded) == num_made


def test_one_file_cannot_hold_two_masks_for_latents_of_one_size(cats: Path) -> None:
    other = folder(cats.with_name("other"), SIZES)
    both = (masked(cats), subset(cats, mask_dir=other))
    with pytest.raises(UserError, match=r"im0_0096x0048_fake.npz cannot hold latents of two masks"):
        fill(cats.parent, *both)
    fill(cats.parent, *both, to_disk=False)


@pytest.mark.parametrize(
    "option", [{"color_aug": True}, {"random_crop": True}, {"face_crop_aug_range": (2.0, 4.0)}]
)
def test_images_that_vary_are_refused_by_folder_and_setting(cats: Path, option: dict[str, object]) -> None:
    (name,) = option
    with pytest.raises(UserError, match=f"--cache_latents excludes {name}, which .*cats asks for"):
        require_constant_images(read(subset(cats, **option)))
    require_constant_images(read(subset(cats, flip_aug=True, alpha_mask=True)))
