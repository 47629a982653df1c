"""What an inpainting model is to fill: images and masks of files, drawn masks, and nothing at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import UserError
from sfumato.sampling import canvas
from sfumato.sampling.prompts.prompt_options import parse_line
from sfumato.sampling.request import Request


@dataclass
class Model:
    is_inpainting: bool
    is_plain: bool = False


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """An image of 96 x 32 pixels, brighter to the right, and beside it a mask of half its size."""
    columns = np.arange(96, dtype=np.uint8)
    Image.fromarray(np.broadcast_to(columns[None, :, None], (32, 96, 3)).copy()).save(tmp_path / "photo.png")
    white = np.zeros((16, 48), np.uint8)
    white[:, 24:] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    return str(tmp_path / "photo.png")


def request(**options: Any) -> Request:
    return Request("a cat", width=32, height=32, seed=3, **options)


def test_without_an_image_everything_is_painted() -> None:
    pixels, mask = canvas.canvas_for(request())
    assert pixels.shape == (1, 3, 32, 32)
    assert not pixels.any()
    assert mask.shape == (1, 1, 32, 32)
    assert bool(mask.all())


def test_an_image_is_cut_in_the_middle_and_its_mask_with_it(photo: str) -> None:
    pixels, mask = canvas.canvas_for(request(image=photo, mask=photo.replace("photo", "mask")))
    assert torch.allclose(pixels[0, 0, 0], torch.arange(32.0, 64) / 127.5 - 1)
    assert torch.equal(mask[0, 0], (torch.arange(32) >= 16).expand(32, 32))


def test_a_mask_is_drawn_of_the_seed_where_none_is_given(photo: str) -> None:
    first, again = (canvas.canvas_for(request(image=photo)).mask for _ in range(2))
    assert torch.equal(first, again)
    assert 0.05 < float(first.float().mean()) < 0.65


@pytest.mark.parametrize(
    ("name", "inpaints", "message"),
    [
        ("photo.png", False, "and the model repaints none; take an inpainting model"),
        ("absent.png", True, "absent.png cannot be read as an image: No such file"),
    ],
)
def test_an_image_that_will_not_do_is_one_line(name: str, inpaints: bool, message: str, photo: str) -> None:
    asked = request(image=photo.replace("photo.png", name))
    with pytest.raises(UserError, match=message):
        canvas.check(asked, cast(Any, Model(is_inpainting=inpaints)))
    canvas.check(request(), cast(Any, Model(is_inpainting=inpaints)))


def test_a_mask_belongs_to_an_image() -> None:
    with pytest.raises(UserError, match="no image is given"):
        request(mask="mask.png")


def test_prompt_lines_name_both() -> None:
    line = parse_line("a cat --img my photo.png --mask mask.png --d 3")
    assert [line.prompt, line.image, line.mask, line.seed] == ["a cat", "my photo.png", "mask.png", 3]
