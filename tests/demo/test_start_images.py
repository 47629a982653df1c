"""What starts from an image stays close to it, and what a mask keeps stays as it was: on the toy base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.demo import base
from sfumato.models.families.flux.family import FluxFamily
from sfumato.sampling.formats import AskedDtype, formats_for
from sfumato.sampling.generator import Generator, parts_of

CPU = torch.device("cpu")
HOW = {"width": base.SIZE_PX, "height": base.SIZE_PX, "steps": 4, "seed": base.SEED, "guidance": 1.0}
CAT, COFFEE = "a photo of a cat", "a photo of a cup of coffee"


@pytest.fixture(scope="module")
def toy() -> Generator:
    family = FluxFamily(
        base.TRANSFORMER,
        *(base.CLIP_L, base.T5XXL, base.AUTOENCODER),
        t5_max_length=base.TEXT_LENGTH,
        apply_t5_mask=True,
    )
    formats = formats_for(parts_of(family), CPU, AskedDtype(torch.float32, "the test"))
    return Generator(family, device=CPU, formats=formats)


@pytest.fixture(scope="module")
def cat(toy: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "cat.png"
    toy(CAT, **HOW)[0].save(path)
    return path


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Return how alike images of 8 bits are, in dB; infinite if they are equal."""
    error = float(((one.astype(float) - other.astype(float)) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def test_a_smaller_strength_stays_closer_to_the_image(toy: Generator, cat: Path) -> None:
    before = np.asarray(Image.open(cat))
    found = {
        strength: psnr(np.asarray(toy(COFFEE, image=str(cat), strength=strength, **HOW)[0]), before)
        for strength in (0.0, 0.3, 0.8)
    }
    print({strength: f"{value:.1f} dB" for strength, value in found.items()})
    assert found[0.0] > found[0.3] > found[0.8] + 2


def test_what_a_mask_keeps_comes_out_as_it_was(toy: Generator, cat: Path) -> None:
    middle = base.SIZE_PX // 2
    white = np.zeros((base.SIZE_PX, base.SIZE_PX), np.uint8)
    white[:, middle:] = 255
    mask = cat.with_name("mask.png")
    Image.fromarray(white).save(mask)
    made = np.asarray(toy(COFFEE, image=str(cat), mask=str(mask), strength=0.8, **HOW)[0])
    before = np.asarray(Image.open(cat))
    kept, painted = psnr(made[:, :middle], before[:, :middle]), psnr(made[:, middle:], before[:, middle:])
    print(f"kept {kept:.1f} dB, painted {painted:.1f} dB")
    assert kept > 40
    assert painted < 20
