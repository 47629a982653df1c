from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.data.sources import sources
from sfumato.data.sources.complaints import Complaints
from sfumato.errors import UserError
from tests.data.folders import folder, image, plan, subset


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    images = folder(tmp_path / "cat", [(64, 32)] * 3)
    folder(tmp_path / "masks", [(64, 32), (32, 16), (128, 63)])
    return images


def test_masks_of_the_same_proportions_fit_whatever_their_size(cats: Path) -> None:
    masked = subset(cats, mask_dir=cats.with_name("masks"))
    assert len(sources.read(plan(masked), Complaints(strict=True))) == 3


def test_masks_of_other_proportions_are_named_before_they_are_stretched(cats: Path) -> None:
    masks = cats.with_name("masks")
    image(masks / "im1.png", (40, 40))
    complaints = Complaints()
    assert len(sources.read(plan(subset(cats, mask_dir=masks)), complaints)) == 3
    (said,) = complaints.warnings
    assert said.message.startswith(f"1 of 3 images in {masks} is stretched to the proportions")
    assert said.files == ("im1.png",)


def test_an_image_whose_mask_is_broken_is_left_out_and_both_are_named(cats: Path) -> None:
    masks = cats.with_name("masks")
    (masks / "im2.png").write_bytes(b"no image at all")
    masked = subset(cats, mask_dir=masks)
    complaints = Complaints()
    assert len(sources.read(plan(masked), complaints)) == 2
    ((path, reason),) = complaints.broken
    assert path == str(cats / "im2.png")
    assert reason.startswith(f"{masks / 'im2.png'} beside it is broken: not an image")
    with pytest.raises(UserError, match="beside it is broken"):
        sources.read(plan(masked), Complaints(strict=True))


def test_images_without_a_face_in_their_names_are_counted(cats: Path) -> None:
    image(cats / "im3_20_10_8_8.png", (64, 32), "cat")
    complaints = Complaints()
    sources.read(plan(subset(cats, face_crop_aug_range=(2.0, 4.0))), complaints)
    (said,) = complaints.warnings
    assert said.message.startswith(f"3 of 4 images of {cats} have no face in the name")
    assert said.files == ("im0.png", "im1.png", "im2.png")


def test_images_of_no_more_pixels_than_a_size_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cats = folder(tmp_path / "cat", [(64, 32), (32, 64), (64, 64), (96, 20), (128, 16), (129, 16)])
    masks = folder(tmp_path / "masks", [(64, 32), (32, 64), (64, 64), (96, 20), (128, 16), (129, 16)])
    planned = plan(subset(cats, mask_dir=masks), skipped_size=(64, 32))
    caplog.set_level("INFO")
    table = sources.read(planned, Complaints(strict=True))
    assert [Path(path).name for path in table.paths] == ["im2.png", "im5.png"]
    assert (
        f"4 of 6 images in {cats} are left out: no larger than skip_image_resolution 64x32, the first is "
        "im0.png" in caplog.text
    )
    with pytest.raises(UserError, match="check image_dir and num_repeats and skip_image_resolution"):
        sources.read(plan(subset(cats), skipped_size=(999, 999)), Complaints())
