from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data.batches import render
from sfumato.data.images import framing, images, masks
from sfumato.data.images.buckets import Buckets, crop_offset
from sfumato.data.images.masks import MaskSource
from sfumato.data.images.resizing import resize
from tests.data.folders import image, pixels, subset

SQUARE = Buckets((32, 32), enabled=False)
SIZE = (100, 50)
FIT = SQUARE.fit(SIZE)


def draws(path: Path, num: int = 40, *, own_size: bool = False, **options: object) -> list[render.ImageView]:
    varied = subset(path.parent, **options)
    rng = random.Random(0)
    return [
        render.draw(str(path), SIZE, FIT, varied, rng, flipped=bool(i % 2), own_size=own_size)
        for i in range(num)
    ]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return image(tmp_path / "x.png", SIZE)


@pytest.fixture
def translucent(tmp_path: Path) -> Path:
    """An image whose transparency falls from left to right."""
    path = tmp_path / "alpha.png"
    alpha = np.broadcast_to(np.linspace(255, 0, 100), (50, 100)).astype(np.uint8)
    Image.fromarray(np.dstack([pixels("alpha", 100, 50), alpha])).save(path)
    return path


def test_a_plain_view_is_decoded_resized_and_cut_from_the_middle(photo: Path) -> None:
    small = np.array(resize(Image.open(photo), (64, 32)))[:, 16:48]
    found, mask = render.render(str(photo), render.plain(SIZE, FIT))
    assert torch.equal(found, images.to_tensor(Image.fromarray(small)))
    assert mask is None


def test_a_subset_without_augmentation_is_shown_plainly(photo: Path) -> None:
    for view in draws(photo):
        assert view == render.plain(SIZE, FIT, flipped=view.flipped)


def test_a_chosen_filter_reaches_the_image(photo: Path) -> None:
    (view,) = draws(photo, 1, resize_interpolation="nearest")
    nearest = np.array(resize(Image.open(photo), (64, 32), "nearest"))[:, 16:48]
    assert torch.equal(render.render(str(photo), view)[0], images.to_tensor(Image.fromarray(nearest)))


def test_windows_at_random_tell_their_true_place(photo: Path) -> None:
    found = draws(photo, random_crop=True)
    assert len({view.framing.corner for view in found}) > 10
    for view in found:
        left = view.framing.corner[0]
        assert view.framing.resized == (64, 32)
        assert view.offset == (0, 64 - 32 - left if view.flipped else left)


def test_windows_at_random_are_cut_out_of_the_image_as_it_is_without_buckets(photo: Path) -> None:
    found = draws(photo, random_crop=True, own_size=True)
    assert {view.framing.resized for view in found} == {SIZE}
    assert max(view.framing.corner[0] for view in found) > 32
    top, left = found[0].offset
    shown = np.array(Image.open(photo))[top : top + 32, left : left + 32]
    assert torch.equal(render.render(str(photo), found[0])[0], images.to_tensor(Image.fromarray(shown)))


def test_an_image_that_is_too_small_for_its_window_is_still_enlarged(tmp_path: Path) -> None:
    path, small = image(tmp_path / "small.png", (60, 20)), (60, 20)
    view = render.draw(
        str(path),
        small,
        SQUARE.fit(small),
        subset(tmp_path, random_crop=True),
        random.Random(0),
        flipped=False,
        own_size=True,
    )
    assert view.framing.resized == (96, 32)


def test_faces_are_framed_where_the_name_tells_of_them(tmp_path: Path) -> None:
    with_face, without = tmp_path / "x_70_25_20_20.png", tmp_path / "y.png"
    (view,) = draws(with_face, 1, face_crop_aug_range=(2.0, 2.0))
    assert view.framing == framing.Framing((80, 40), (40, 4), (32, 32))
    assert view.offset == (4, 40)
    (view,) = draws(without, 1, face_crop_aug_range=(2.0, 2.0))
    assert view.framing == framing.centred(FIT)
    assert view.offset == crop_offset(FIT.bucket, SIZE, False)


def test_mirroring_turns_image_and_mask_around(translucent: Path) -> None:
    straight = render.render(str(translucent), render.plain(SIZE, FIT), MaskSource())
    mirrored = render.render(str(translucent), render.plain(SIZE, FIT, flipped=True), MaskSource())
    for one, other in zip(straight, mirrored, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.flip(-1), other)
        assert not torch.equal(one, other)


def test_transparency_becomes_the_mask_and_opaque_images_count_fully(translucent: Path, photo: Path) -> None:
    mask = render.render(str(translucent), render.plain(SIZE, FIT), MaskSource())[1]
    assert mask is not None
    assert mask.shape == (1, 32, 32)
    # The window is the middle third of the falling ramp.
    assert mask[0, 0].tolist() == pytest.approx(torch.linspace(0.75, 0.25, 32).tolist(), abs=0.01)
    opaque = render.render(str(photo), render.plain(SIZE, FIT), MaskSource())[1]
    assert opaque is not None
    assert opaque.tolist() == torch.ones(1, 32, 32).tolist()


def test_without_a_mask_transparency_is_dropped_and_the_colours_below_are_trained(translucent: Path) -> None:
    colours = pixels("alpha", 100, 50)
    flat = np.array(resize(Image.fromarray(colours), (64, 32)))[:, 16:48]
    for mask in (None, MaskSource()):
        found = render.render(str(translucent), render.plain(SIZE, FIT), mask)[0]
        assert torch.equal(found, images.to_tensor(Image.fromarray(flat)))


def test_the_red_channel_of_another_image_is_a_mask_and_is_cut_like_the_image(tmp_path: Path) -> None:
    noise = pixels("both", *SIZE)
    path, beside = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(noise).save(path)
    Image.fromarray(np.dstack([noise[:, :, 0], noise[:, :, :2] * 0])).save(beside)
    for view in draws(path, 10, random_crop=True):
        found, mask = render.render(str(path), view, MaskSource(str(beside)))
        assert mask is not None
        assert (mask[0] - (found[0] + 1) / 2).abs().max() < 1e-6


def test_a_mask_of_another_size_is_stretched_over_the_image(photo: Path, tmp_path: Path) -> None:
    half = np.zeros((10, 10), np.uint8)
    half[:, :5] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    mask = render.render(
        str(photo),
        render.plain(SIZE, FIT, interpolation="nearest"),
        MaskSource(str(tmp_path / "half.png")),
    )[1]
    assert mask is not None
    assert mask[0].mean(0).tolist() == [1.0] * 16 + [0.0] * 16


def test_colours_vary_and_masks_do_not(translucent: Path) -> None:
    found = [
        render.render(str(translucent), view, MaskSource())
        for view in draws(translucent, color_aug=True)
        if not view.flipped
    ]
    assert len({pixels.sum().item() for pixels, _ in found}) > 3
    assert len({mask.sum().item() for _, mask in found if mask is not None}) == 1


def test_a_mask_is_averaged_down_to_latents() -> None:
    mask = torch.zeros(1, 16, 24)
    mask[:, :8, :4] = 1
    assert masks.shrunk(mask, (2, 3)).tolist() == [[[0.5, 0, 0], [0, 0, 0]]]
