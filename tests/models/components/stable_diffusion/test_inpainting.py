"""UNets that take a mask and masked latents: told by their files, made of others, computing as diffusers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.interface.conditioning import Conditioning, ImageSizes, inpainting, masked
from sfumato.models.interface.family import DENOISER, Family, is_inpainting
from sfumato.models.interface.publishing import Layout, Publishing, tensors_of
from sfumato.models.registry.families import family_for
from tests import tiny
from tests.pipelines import unet

pytestmark = pytest.mark.whole_model

CPU = torch.device("cpu")
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


BOTH = pytest.mark.parametrize("kind", ["sd1", "sdxl"])


@cache
def written(kind: str, inpaints: bool, folder: Path) -> tiny.TinyCheckpoint:
    make: Any = tiny.sdxl if kind == "sdxl" else tiny.sd
    return make(folder / kind / str(inpaints), inpaints=inpaints)


Files = Callable[[str, bool], tiny.TinyCheckpoint]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Models by their kind and by whether they inpaint."""
    folder = tmp_path_factory.mktemp("models")
    return lambda kind, inpaints: written(kind, inpaints, folder)


def family_of(kind: str, base: tiny.TinyCheckpoint, *, inpaints: bool = False) -> Any:
    config = ModelConfig(
        pretrained_model_name_or_path=str(base.path), tokenizer_cache_dir=str(base.tokenizers)
    )
    name = "sdxl" if kind == "sdxl" else "sd"
    return family_for(Run("some_script", name, [config, ImageConfig(train_inpainting=inpaints)]))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def told(kind: str, control: dict[str, Tensor]) -> Conditioning:
    if kind == "sd1":
        return Conditioning({"hidden_state": noise(2, 77, tiny.CLIP_WIDTH)}, control=control)
    size = torch.full((2, 2), 64)
    text = {
        "hidden_state1": noise(2, 77, tiny.CLIP_WIDTH),
        "hidden_state2": noise(2, 77, tiny.CLIP_G_WIDTH),
        "pool2": noise(2, tiny.CLIP_G_WIDTH),
    }
    return Conditioning(text, sizes=ImageSizes(size, 0 * size, size), control=control)


def mask() -> Tensor:
    return (torch.arange(64) < 30).expand(2, 1, 64, 64)


def predicted(family: Family, kind: str, control: dict[str, Tensor]) -> Tensor:
    model = family.load(DENOISER, torch.float32, CPU)
    with torch.no_grad():
        return family.predict(model, noise(2, 4, 8, 8), torch.tensor([30.0, 700.0]), told(kind, control))


@BOTH
def test_a_nine_channel_unet_predicts_what_diffusers_does(kind: str, files: Files) -> None:
    family = family_of(kind, files(kind, True))
    assert is_inpainting(family)
    assert not family.is_plain
    family.check((DENOISER, *family.text_outputs))
    control = inpainting(mask(), noise(2, 4, 8, 8))
    ours = predicted(family, kind, control)
    public, words = unet(load_file(files(kind, True).path), kind), told(kind, {}).text
    context = torch.cat([words[name] for name in words if name.startswith("hidden")], -1)
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    # One of eight pixels counts: the mask's 30 columns are 4 of the latents'.
    shrunk = (torch.arange(8) < 4).float().expand(2, 1, 8, 8)
    with torch.no_grad():
        theirs = public(
            torch.cat([noise(2, 4, 8, 8), shrunk, noise(2, 4, 8, 8)], 1),
            torch.tensor([30.0, 700.0]),
            encoder_hidden_states=context,
            added_cond_kwargs={"text_embeds": words.get("pool2"), "time_ids": sizes},
        ).sample
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    print(f"{kind}: relative difference {error:.1e}")
    assert error < 1e-4
    assert float((ours - predicted(family, kind, inpainting(~mask(), noise(2, 4, 8, 8)))).abs().max()) > 1e-2


def test_a_plain_model_that_is_to_inpaint_begins_as_it_was(files: Files) -> None:
    plain, widened = (family_of("sd1", files("sd1", False), inpaints=asked) for asked in (False, True))
    assert [is_inpainting(plain), plain.is_plain] == [False, True]
    assert [is_inpainting(widened), widened.is_plain] == [True, True]
    widened.check((DENOISER,))
    first = widened.load(DENOISER, torch.float32, CPU).conv_in.weight
    assert torch.equal(first[:, :4], load_file(files("sd1", False).path)[FIRST])
    assert first.shape[1] == 9
    assert not first[:, 4:].any()
    control = inpainting(mask(), noise(2, 4, 8, 8))
    assert torch.allclose(predicted(widened, "sd1", control), predicted(plain, "sd1", {}), atol=1e-5)


def test_what_inpaints_already_is_not_widened(files: Files) -> None:
    model = family_of("sd1", files("sd1", True), inpaints=True).load(DENOISER, torch.float32, CPU)
    assert torch.equal(model.conv_in.weight, load_file(files("sd1", True).path)[FIRST])


def test_a_trained_model_of_nine_channels_is_written_beside_the_rest_of_its_plain_base(
    files: Files, tmp_path: Path
) -> None:
    family = family_of("sd1", files("sd1", False), inpaints=True)
    model = family.load(DENOISER, torch.float32, CPU)
    model.conv_in.weight[:, 4:] = 0.5
    path, parts = tmp_path / "made.safetensors", {DENOISER: tensors_of(model)}
    family.write(parts, path, Publishing())
    base, made = load_file(files("sd1", False).path), load_file(path)
    assert made.keys() == base.keys()
    assert [name for name in base if made[name].shape != base[name].shape] == [FIRST]
    assert all(torch.equal(made[name], base[name]) for name in base.keys() - {FIRST})
    again = family_of("sd1", tiny.TinyCheckpoint(path, files("sd1", False).tokenizers))
    assert is_inpainting(again)
    assert torch.equal(again.load(DENOISER, torch.float32, CPU).conv_in.weight, model.conv_in.weight)
    size = path.stat().st_size
    assert abs(family.written_bytes(parts, Publishing()) - size) < 0.01 * size


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_its_folder_opens_in_diffusers_as_a_pipeline_that_inpaints(
    kind: str, files: Files, tmp_path: Path
) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    family = family_of(kind, files(kind, True))
    family.write({}, tmp_path, Publishing(layout=Layout.FOLDER))
    settings = json.loads((tmp_path / "unet" / "config.json").read_text("utf-8"))
    assert [settings["in_channels"], settings["out_channels"]] == [9, 4]
    opened: Any = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(opened).__name__.endswith("InpaintPipeline")
    assert torch.equal(opened.unet.conv_in.weight, load_file(files(kind, True).path)[FIRST])
    assert is_inpainting(family_of(kind, tiny.TinyCheckpoint(tmp_path, files(kind, True).tokenizers)))


def test_what_is_repainted_is_grey_to_the_model() -> None:
    pixels = noise(2, 3, 64, 64)
    left = masked(pixels, mask())
    assert not left[..., :30].any()
    assert torch.equal(left[..., 30:], pixels[..., 30:])
