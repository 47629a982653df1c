from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sfumato.data.sources import sources
from sfumato.data.sources.complaints import Complaints
from sfumato.errors import UserError
from tests.data.folders import folder, image, plan, subset


@pytest.fixture
def masked(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of three images and one of three masks, one of them in another format."""
    images, masks = folder(tmp_path / "cat", [(40, 40)] * 3), tmp_path / "masks"
    for name in ("im0.png", "im1.JPG", "im2.png"):
        image(masks / name, (40, 40))
    return images, masks


def test_each_image_has_the_one_of_its_name_whatever_the_format(masked: tuple[Path, Path]) -> None:
    images, masks = masked
    found = sources.read(plan(subset(images, mask_dir=masks)), Complaints(strict=True))
    assert [(Path(p.path).name, p.mask) for p in found] == [
        ("im0.png", str(masks / "im0.png")),
        ("im1.png", str(masks / "im1.JPG")),
        ("im2.png", str(masks / "im2.png")),
    ]


def test_images_without_a_partner_are_left_out_and_said_so_in_one_line(
    masked: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    images, masks = masked
    (masks / "im1.JPG").unlink()
    (masks / "im2.png").unlink()
    wanted = plan(subset(images, mask_dir=masks))
    found = sources.read(wanted, Complaints())
    assert [Path(p.path).name for p in found] == ["im0.png"]
    assert [record.getMessage() for record in caplog.records] == [
        f"2 of 3 images in {images} have no image of the same name in {masks} and are left out, "
        "the first is im1.png"
    ]
    with pytest.raises(UserError, match="2 of 3 images"):
        sources.read(wanted, Complaints(strict=True))


def test_partners_of_no_image_are_named_once_for_all_subsets(
    masked: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    images, masks = masked
    other = images.with_name("dog")
    other.mkdir()
    shutil.move(images / "im1.png", other / "im1.png")
    image(masks / "im7.png", (40, 40))
    subsets = [subset(path, class_tokens="cat", mask_dir=masks) for path in (images, other)]
    assert len(sources.read(plan(*subsets), Complaints())) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"1 image in {masks} belongs to no image that is trained, the first is im7.png"
    ]


def test_subsets_without_a_folder_of_partners_have_none(masked: tuple[Path, Path]) -> None:
    assert {p.mask for p in sources.read(plan(subset(masked[0])), Complaints())} == {None}
