"""A mapping of a user's class becomes a batch, or one line says what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato.data.custom.returned_batches import Geometry, batch_of
from sfumato.errors import UserError

GEOMETRY = Geometry(channels=4, downscale=8, multiple=16, scaled=lambda raw: raw * 0.5)
WHERE = "--dataset_class my.Data, batch 3"
CAPTIONS = ["a cat", "a dog"]


def pixels(height: int = 32, width: int = 48, count: int = 2) -> torch.Tensor:
    return torch.linspace(-1, 1, count * 3 * height * width).view(count, 3, height, width)


def test_images_and_captions_are_all_that_is_needed() -> None:
    batch = batch_of({"images": pixels(), "captions": CAPTIONS}, GEOMETRY, WHERE)
    assert batch.pixels is not None
    assert torch.equal(batch.pixels, pixels())
    assert (batch.captions, batch.latents, batch.masks, batch.text) == (CAPTIONS, None, None, {})
    assert batch.loss_weights.tolist() == batch.network_multipliers.tolist() == [1, 1]
    assert batch.original_sizes.tolist() == batch.target_sizes.tolist() == [[32, 48]] * 2
    assert batch.crop_offsets.tolist() == [[0, 0]] * 2
    assert batch.paths == [WHERE] * 2


def test_everything_that_sd_scripts_names_is_taken() -> None:
    example = {
        "images": None,
        "latents": np.full((2, 4, 4, 6), 2.0),
        "captions": CAPTIONS,
        "loss_weights": torch.tensor([1.0, 0.25]),
        "network_multipliers": torch.tensor([0.5, 0.5]),
        "original_sizes_hw": [(100, 200), (300, 400)],
        "crop_top_lefts": torch.tensor([[1, 2], [3, 4]]),
        "target_sizes_hw": torch.tensor([[32, 48], [32, 48]]),
        "alpha_masks": torch.ones(2, 32, 48) / 4,
        "custom_attributes": [{"note": 1}, {}],
        "input_ids": torch.zeros(2, 77),
        "flippeds": [False, True],
    }
    batch = batch_of(example, GEOMETRY, WHERE)
    assert batch.pixels is None
    assert batch.latents is not None
    assert batch.latents.shape == (2, 4, 4, 6)
    assert (batch.latents == 1).all(), "scaled by a half"
    assert batch.loss_weights.tolist() == [1, 0.25]
    assert batch.network_multipliers.tolist() == [0.5, 0.5]
    assert batch.original_sizes.tolist() == [[100, 200], [300, 400]]
    assert batch.crop_offsets.tolist() == [[1, 2], [3, 4]]
    assert batch.masks is not None
    assert batch.masks.shape == (2, 1, 32, 48)
    assert batch.custom_attributes == [{"note": 1}, {}]


def test_masks_may_have_the_size_of_latents() -> None:
    example = {"images": pixels(), "captions": CAPTIONS, "alpha_masks": torch.ones(2, 1, 4, 6)}
    masks = batch_of(example, GEOMETRY, WHERE).masks
    assert masks is not None
    assert masks.shape == (2, 1, 4, 6)


def test_sizes_of_latents_are_told_in_pixels() -> None:
    batch = batch_of({"latents": torch.zeros(2, 4, 4, 6), "captions": CAPTIONS}, GEOMETRY, WHERE)
    assert batch.target_sizes.tolist() == [[32, 48]] * 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"captions": None}, " has no captions; return one text for each image"),
        ({"captions": "a cat"}, ": captions is 'a cat'; return a list of texts, one for each image"),
        ({"captions": ["a cat", 3]}, ": captions is ['a cat', 3]; return a list"),
        ({"captions": []}, ": captions is []; return a list"),
        ({"images": None}, " has neither images nor latents; return one of them"),
        ({"images": "x.png"}, ": images is 'x.png'; it must be a tensor of numbers"),
        (
            {"images": pixels(count=3)},
            ": images is of shape (3, 3, 32, 48); it must be (2, 3, height, width)",
        ),
        ({"images": pixels()[0]}, ": images is of shape (3, 32, 48); it must be (2, 3, height, width)"),
        ({"images": pixels(40)}, ": images is of shape (2, 3, 40, 48); sides must be multiples of 16"),
        ({"images": pixels() * 255}, ": images is between -255 and 255; values must lie between -1 and 1"),
        ({"images": pixels() / 0}, ": images is not finite"),
        ({"latents": torch.zeros(2, 16, 4, 6)}, ": latents is of shape (2, 16, 4, 6); it must be (2, 4,"),
        (
            {"latents": torch.zeros(2, 4, 3, 6)},
            ": latents is of shape (2, 4, 3, 6); sides must be multiples of 2",
        ),
        ({"loss_weights": [1.0]}, ": loss_weights is of shape (1,); it must be (2,)"),
        ({"network_multipliers": [1.0, 0.5]}, ": network_multipliers is [1.0, 0.5]; they must be the same"),
        (
            {"alpha_masks": torch.ones(2, 8, 8)},
            ": alpha_masks is of shape (2, 8, 8); it must be (2, 32, 48), or",
        ),
        (
            {"alpha_masks": torch.ones(2, 4, 6) * 2},
            ": alpha_masks is between 2 and 2; values must lie between 0",
        ),
        ({"custom_attributes": [{}]}, ": custom_attributes is [{}]; return a list of 2 mappings"),
        ({"loss_weight": [1, 1]}, " has 'loss_weight', which means nothing here; known are images, latents,"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        batch_of({"images": pixels(), "captions": CAPTIONS, **changes}, GEOMETRY, WHERE)
    assert str(caught.value).startswith(WHERE + complaint)
    assert "\n" not in str(caught.value)


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(UserError, match=r"batch 3 is \[1, 2\]; return a mapping with images and captions$"):
        batch_of([1, 2], GEOMETRY, WHERE)
