"""What the denoiser is told of masked images, and which runs tell it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.data.batches.collate import Batch
from sfumato.errors import UserError
from sfumato.models.interface.conditioning import INPAINT_MASK, MASKED_LATENTS, Conditioning
from sfumato.training.trainables import inpainting
from sfumato.training.trainables.inpainting import MaskedImages

WORDS = Conditioning({"words": torch.ones(2, 3)}, control={"other": torch.ones(2, 1)})


@dataclass
class Model:
    """A family whose latents are images averaged over 8 x 8 pixels."""

    is_inpainting: bool = True
    is_plain: bool = False

    def encode_image(self, vae: Any, pixels: Tensor, rng: Any) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def source(self, part: str) -> str:
        return "base.safetensors"


def batch(mask: Tensor | None) -> Batch:
    pixels = torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(1))
    sizes = torch.zeros(2, 2, dtype=torch.int64)
    weights = torch.ones(2)
    return Batch(["", ""], ["", ""], weights, weights, sizes, sizes, sizes, pixels=pixels, inpaint_masks=mask)


def says_words(batch: Batch, rng: torch.Generator) -> Conditioning:
    return WORDS


def told(mask: Tensor | None) -> Conditioning:
    condition = MaskedImages(says_words, cast(Any, Model()), cast(Any, {"vae": None}))
    return condition(batch(mask), torch.Generator())


def test_the_denoiser_is_told_the_mask_and_what_it_leaves_besides_the_rest() -> None:
    mask = torch.zeros(2, 1, 16, 32, dtype=torch.bool)
    mask[0, :, :, :8] = mask[1, :, 8:] = True
    found = told(mask)
    assert found.text is WORDS.text
    assert found.control["other"] is WORDS.control["other"]
    assert found.control[INPAINT_MASK].tolist() == [[[[1, 0, 0, 0]] * 2], [[[0] * 4, [1] * 4]]]
    latents, whole = found.control[MASKED_LATENTS], Model().encode_image(None, batch(None).pixels, None)  # type: ignore[arg-type]
    assert torch.equal(latents == 0, found.control[INPAINT_MASK].expand_as(latents) == 1)
    assert torch.equal(latents[0, :, :, 1:], whole[0, :, :, 1:])


def test_images_without_a_mask_are_repainted_wholly() -> None:
    found = told(None)
    assert bool((found.control[INPAINT_MASK] == 1).all())
    assert not found.control[MASKED_LATENTS].any()


def run(folder: Path, option: bool, *keys: str) -> Run:
    """Return a run of data sets with these keys, or of none."""
    data = folder / "data.toml"
    data.write_text("".join(f"[[datasets]]\n{key}\n" for key in keys))
    config = DatasetConfig(dataset_config=data if keys else None)
    return Run("some_script", "some_family", [config, ImageConfig(train_inpainting=option)])


@pytest.mark.parametrize(
    ("option", "keys", "asked"),
    [
        (False, (), False),
        (True, (), True),
        (False, ("train_inpainting = true", ""), True),
        (True, ("train_inpainting = false", ""), True),
        (True, ("train_inpainting = false",), False),
    ],
)
def test_one_data_set_that_asks_makes_the_model_inpaint(
    option: bool, keys: tuple[str, ...], asked: bool, tmp_path: Path
) -> None:
    made = run(tmp_path, option, *keys)
    decided = inpainting.decided(made)
    assert decided[ImageConfig].train_inpainting == asked
    assert made[ImageConfig].train_inpainting == option
    model = Model(is_inpainting=asked)
    inpainting.check(decided, cast(Any, model))
    remedy = (
        "no model of this kind inpaints" if asked else "base.safetensors is an inpainting model; add --train"
    )
    with pytest.raises(UserError, match=remedy):
        inpainting.check(decided, cast(Any, replace(model, is_inpainting=not asked)))


@pytest.mark.parametrize(
    ("is_plain", "trains", "num_lines"), [(True, False, 1), (True, True, 0), (False, False, 0)]
)
def test_an_adapter_of_a_plain_model_is_warned_of(is_plain: bool, trains: bool, num_lines: int) -> None:
    model = cast(Any, Model(is_plain=is_plain))
    assert len(list(inpainting.without_effect(model, trains_denoiser=trains))) == num_lines
