"""What an inpainting model is to fill: images and masks of files, drawn masks, and nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import UserError
from sfumato.sampling.prompts.prompt_options import parse_line
from sfumato.sampling.request import Request
from sfumato.sampling.starts import canvas


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
    pixels, mask = canvas.canvas_for(request(), draws_mask=True)
    assert pixels.shape == (1, 3, 32, 32)
    assert not pixels.any()
    assert mask.shape == (1, 1, 32, 32)
    assert bool(mask.all())


def test_an_image_is_cut_in_the_middle_and_its_mask_with_it(photo: str) -> None:
    found = canvas.canvas_for(request(image=photo, mask=photo.replace("photo", "mask")), draws_mask=False)
    assert torch.allclose(found.pixels[0, 0, 0], torch.arange(32.0, 64) / 127.5 - 1)
    assert torch.equal(found.repainted[0, 0], (torch.arange(32) >= 16).expand(32, 32))


def test_a_mask_is_drawn_of_the_seed_where_none_is_given(photo: str) -> None:
    first, again = (canvas.canvas_for(request(image=photo), draws_mask=True).mask for _ in range(2))
    assert torch.equal(first, again)
    assert 0.05 < float(first.mean()) < 0.65
    assert bool(canvas.canvas_for(request(image=photo), draws_mask=False).mask.all())


def test_what_is_kept_of_latents_is_an_average_of_the_mask(photo: str) -> None:
    half = canvas.canvas_for(request(image=photo, mask=photo.replace("photo", "mask")), draws_mask=False)
    keep = canvas.kept(half, (4, 4))
    assert keep.shape == (1, 1, 4, 4)
    assert keep[0, 0, 2].tolist() == pytest.approx([1, 1 - 1 / 8, 1 / 8, 0], abs=0.01)


def test_an_image_that_is_not_there_is_one_line(photo: str) -> None:
    asked = request(image=photo.replace("photo.png", "absent.png"))
    with pytest.raises(UserError, match=r"absent.png cannot be read as an image: No such file"):
        canvas.check(asked)
    canvas.check(request())


def test_a_mask_belongs_to_an_image() -> None:
    with pytest.raises(UserError, match="no image is given"):
        request(mask="mask.png")


def test_prompt_lines_name_both() -> None:
    line = parse_line("a cat --img my photo.png --mask mask.png --d 3")
    assert [line.prompt, line.image, line.mask, line.seed] == ["a cat", "my photo.png", "mask.png", 3]
