"""Cache files of Stable Diffusion have the names, arrays and scale that sd-scripts looks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.caching import store
from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import fill_texts
from sfumato.data.batches import dataset
from sfumato.errors import UserError
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import VAE
from sfumato.models.interface.parts import Parts
from tests import tiny
from tests.data.folders import folder, plan, subset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyCheckpoint:
    return tiny.sdxl(tmp_path_factory.mktemp("sdxl"))


def sdxl_family(files: tiny.TinyCheckpoint, **options: object) -> SdxlFamily:
    return SdxlFamily(files.path, tokenizers=files.tokenizers, **options)


def stored(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: array for name, array in arrays.items() if not name.startswith("sfumato")}


def test_latents_are_stored_unscaled_and_read_scaled(sdxl: tiny.TinyCheckpoint, tmp_path: Path) -> None:
    family, path = sdxl_family(sdxl), folder(tmp_path / "cats", [(64, 96)])
    sets = [dataset.read([plan(subset(path, flip_aug=True))], seed=1) for _ in range(2)]
    fill_latents(sets[0], family, Parts(family, CPU), to_disk=True)
    fill_latents(sets[1], family, Parts(family, CPU))
    arrays = stored(path / "im0_0064x0096_sdxl.npz")
    height, width = arrays["latents"].shape[1:]
    assert {name: array.shape for name, array in arrays.items()} == {
        "latents": (4, height, width),
        "latents_flipped": (4, height, width),
        "original_size": (2,),
        "crop_ltrb": (4,),
    }
    from_disk, from_memory = (made.latents(0, 0, False) for made in sets if made.latents)
    assert torch.allclose(from_disk, from_memory, rtol=1e-6)
    assert np.allclose(arrays["latents"] * 0.13025, from_disk.numpy(), rtol=1e-6)


def test_latents_that_sd_scripts_wrote_are_adopted(tmp_path: Path) -> None:
    files = tiny.sd(tmp_path / "model")
    family, path = SdFamily(files.path, tokenizers=files.tokenizers), folder(tmp_path / "cats", [(64, 64)])
    theirs = np.random.default_rng(0).standard_normal((4, 8, 8), dtype=np.float32)
    sizes = {"original_size": np.array([64, 64]), "crop_ltrb": np.zeros(4)}
    np.savez(path / "im0_0064x0064_sd.npz", latents=theirs, **sizes)
    made, parts = dataset.read([plan(subset(path))], seed=1), Parts(family, CPU)
    cache = fill_latents(made, family, parts, to_disk=True)
    assert VAE not in parts
    assert torch.equal(cache(0, 0, False), torch.from_numpy(theirs) * 0.18215)


def test_two_sizes_of_an_image_do_not_share_a_file(sdxl: tiny.TinyCheckpoint, tmp_path: Path) -> None:
    family, path = sdxl_family(sdxl), folder(tmp_path / "cats", [(128, 128)])
    made = dataset.read([plan(subset(path), resolution=side) for side in (64, 128)], seed=1)
    with pytest.raises(UserError, match=r"_sdxl.npz cannot hold latents of two sizes"):
        fill_latents(made, family, Parts(family, CPU), to_disk=True)
    assert fill_latents(made, family, Parts(family, CPU)).memory is not None


@pytest.mark.parametrize(("max_token_length", "length"), [(None, 77), (150, 152), (225, 227)])
def test_text_outputs_have_the_published_layout(
    sdxl: tiny.TinyCheckpoint, max_token_length: int | None, length: int, tmp_path: Path
) -> None:
    family = sdxl_family(sdxl, max_token_length=max_token_length)
    path = folder(tmp_path / "cats", [(64, 64)])
    made, parts = dataset.read([plan(subset(path))], seed=1), Parts(family, CPU)
    fill_texts(made, family, parts, tuple(family.text_outputs), to_disk=True)
    assert {name: a.shape for name, a in stored(path / "im0_te_outputs.npz").items()} == {
        "hidden_state1": (length, tiny.CLIP_WIDTH),
        "hidden_state2": (length, tiny.CLIP_G_WIDTH),
        "pool2": (tiny.CLIP_G_WIDTH,),
    }


def test_text_outputs_are_made_again_for_another_length_or_with_emphasis(
    sdxl: tiny.TinyCheckpoint, tmp_path: Path
) -> None:
    path = folder(tmp_path / "cats", [(64, 64)])

    def parts_loaded(**options: object) -> list[str]:
        family = sdxl_family(sdxl, **options)
        made, parts = dataset.read([plan(subset(path))], seed=1), Parts(family, CPU)
        fill_texts(made, family, parts, tuple(family.text_outputs), to_disk=True)
        return parts.loaded

    assert len(parts_loaded()) == 2
    assert parts_loaded() == []
    assert len(parts_loaded(has_emphasis=True)) == 2
    assert len(parts_loaded(has_emphasis=True, max_token_length=150)) == 2
    # Of what sd-scripts wrote, the pooled output is another one.
    file = path / "im0_te_outputs.npz"
    np.savez(file, **{name: array for name, array in stored(file).items() if name != store.RECORD})
    assert len(parts_loaded(max_token_length=150)) == 2
