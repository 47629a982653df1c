"""Cache files of Stable Diffusion 3 from sd-scripts: those of 2026 are adopted, older ones made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import fill_texts
from sfumato.data.batches import dataset
from sfumato.models.families.sd3.family import Sd3Family
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.parts import Parts
from tests import tiny
from tests.caching.records import forget_records
from tests.data.folders import folder, plan, subset

FLAGS = ("apply_lg_attn_mask", "apply_t5_attn_mask")
LATENTS, TEXTS = "im0_0064x0064_sd3.npz", "im0_sd3_te.npz"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinySd3:
    return tiny.sd3(tmp_path_factory.mktemp("sd3"), hidden=64)


def fill(model: tiny.TinySd3, path: Path) -> list[str]:
    """Fill all caches; return the parts that were loaded for that."""
    family = Sd3Family({DENOISER: model.path}, model.tokenizers, t5_max_length=32)
    made, parts = dataset.read([plan(subset(path))], seed=1), Parts(family, torch.device("cpu"))
    fill_latents(made, family, parts, to_disk=True)
    fill_texts(made, family, parts, tuple(family.text_outputs), to_disk=True)
    return sorted(parts.loaded)


def stored(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: array for name, array in arrays.items() if not name.startswith("sfumato")}


def test_caches_have_the_layout_of_2026_and_are_adopted_without_a_record(
    model: tiny.TinySd3, tmp_path: Path
) -> None:
    path, width = folder(tmp_path / "cats", [(64, 64)]), tiny.CLIP_WIDTH + tiny.CLIP_G_WIDTH
    assert fill(model, path) == ["clip_g", "clip_l", "t5xxl", VAE]
    assert {name: array.shape for name, array in stored(path / LATENTS).items()} == {
        "latents_8x8": (16, 8, 8),
        "original_size_8x8": (2,),
        "crop_ltrb_8x8": (4,),
    }
    assert {name: array.shape for name, array in stored(path / TEXTS).items()} == {
        "lg_out": (77, width),
        "lg_pooled": (width,),
        "clip_l_attn_mask": (77,),
        "clip_g_attn_mask": (77,),
        "t5_out": (32, width + 64),
        "t5_attn_mask": (32,),
        **dict.fromkeys(FLAGS, ()),
    }
    forget_records(path)
    assert fill(model, path) == []


def test_caches_of_2024_are_made_again(model: tiny.TinySd3, tmp_path: Path) -> None:
    """Latents of one size had no size in their names, and texts did not say whether padding was hidden."""
    path = folder(tmp_path / "cats", [(64, 64)])
    fill(model, path)
    latents, texts = stored(path / LATENTS), stored(path / TEXTS)
    np.savez(path / LATENTS, **{name.removesuffix("_8x8"): array for name, array in latents.items()})
    np.savez(path / TEXTS, **{name: array for name, array in texts.items() if name not in FLAGS})
    assert fill(model, path) == ["clip_g", "clip_l", "t5xxl", VAE]
    assert np.array_equal(stored(path / LATENTS)["latents_8x8"], latents["latents_8x8"])
    assert np.array_equal(stored(path / TEXTS)["lg_out"], texts["lg_out"])
    assert fill(model, path) == []
