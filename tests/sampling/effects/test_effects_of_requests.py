"""Requests that ask for effects: the image changes, and the model is afterwards as it was before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sfumato.adapters.layers.lora import Lora
from sfumato.errors import UserError
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget
from sfumato.sampling.effects.regions.masks import read_masks
from sfumato.sampling.formats import AskedDtype, formats_for
from sfumato.sampling.generator import Generator, parts_of
from sfumato.sampling.loaded_adapters import AdapterFile
from sfumato.sampling.request import Request
from sfumato.sampling.settings.deep_shrink import DeepShrink
from sfumato.sampling.settings.gradual_latent import GradualLatent, UnsharpMask
from sfumato.sampling.settings.regions import Regions
from tests import tiny
from tests.sampling.fake import FakeFamily

pytestmark = pytest.mark.whole_model

CPU = torch.device("cpu")
REQUEST = Request("a cat", width=64, height=64, steps=3, seed=3, sampler="euler_a")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> SdxlFamily:
    model = tiny.sdxl(tmp_path_factory.mktemp("sdxl"))
    return SdxlFamily(model.path, tokenizers=model.tokenizers)


@pytest.fixture(scope="module")
def plain(family: SdxlFamily) -> Generator:
    return generator(family)


def generator(family: SdxlFamily, *adapters: Path) -> Generator:
    formats = formats_for(parts_of(family), CPU, AskedDtype(torch.float32, "the dtype"))
    return Generator(family, adapters=[AdapterFile(path) for path in adapters], device=CPU, formats=formats)


def made(by: Generator, request: Request) -> np.ndarray:
    return np.asarray(by.make([request])[0]).astype(int)


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def mask(path: Path) -> Path:
    """Write an image of which the left half is red and the right half green."""
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 255, 0), (32, 0, 64, 64))
    image.save(path)
    return path


def lora(path: Path, family: SdxlFamily, seed: int) -> Path:
    """Write a strong LoRA of all parts."""
    rng, tensors = torch.Generator().manual_seed(seed), {}
    for part in (*family.text_outputs, DENOISER):
        for target in family.adapter_targets(part, family.load(part, torch.float32, CPU)):
            tensors |= _layer(target, rng)
    save_file(tensors, path)
    return path


def _layer(target: AdapterTarget, rng: torch.Generator) -> dict[str, torch.Tensor]:
    layer = Lora(target, 2)
    halves = {"lora_down": layer.lora_down.weight, "lora_up": layer.lora_up.weight}
    drawn = {name: torch.randn(half.shape, generator=rng) * 0.2 for name, half in halves.items()}
    return {f"{layer.name}.{name}.weight": half for name, half in drawn.items()}


@pytest.mark.parametrize("asked", [{"deep_shrink": DeepShrink(3)}, {"gradual_latent": GradualLatent(900)}])
def test_an_effect_lasts_for_its_image(asked: dict[str, object], plain: Generator) -> None:
    before = made(plain, REQUEST)
    assert distance(made(plain, replace(REQUEST, **asked)), before) > 5  # type: ignore[arg-type]
    assert distance(made(plain, REQUEST), before) == 0


def test_equal_regions_with_equal_adapters_make_one_image(family: SdxlFamily, tmp_path: Path) -> None:
    """Every layer of text encoders and UNet then does what one adapter does everywhere."""
    file = lora(tmp_path / "one.safetensors", family, seed=0)
    one, two = generator(family, file), generator(family, file, file)
    wanted = made(one, REQUEST)
    divided = replace(REQUEST, prompt="a cat AND a cat", regions=Regions(str(mask(tmp_path / "mask.png"))))
    assert distance(made(two, divided), wanted) <= 2
    assert distance(made(two, REQUEST), wanted) > 5


def test_regions_that_differ_show_what_is_asked_there(plain: Generator, tmp_path: Path) -> None:
    regions = Regions(str(mask(tmp_path / "mask.png")))
    guided = replace(
        REQUEST, prompt="a cat AND a red house", cfg_scale=4.0, negative_scale=1.0, regions=regions
    )
    assert distance(made(plain, guided), made(plain, replace(guided, prompt="a red house AND a cat"))) > 5


def test_masks_are_read_from_channels_or_colors(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), (255, 128, 0))
    image.putpixel((3, 0), (255, 255, 0))
    image.save(tmp_path / "mask.png")
    red, green, blue, other = read_masks(tmp_path / "mask.png", (4, 2), 4)
    assert red.tolist() == blue.tolist() == other.tolist() == [[1.0] * 4] * 2  # an empty one is everywhere
    assert green[0].tolist() == pytest.approx([128 / 255] * 3 + [1])
    by_color = read_masks(tmp_path / "mask.png", (4, 2), 3, num_colors=3)
    assert by_color[2].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert by_color[0].tolist() == [[1.0] * 4] * 2


def test_latents_do_not_grow_beside_a_mask(plain: Generator, tmp_path: Path) -> None:
    painted = str(mask(tmp_path / "mask.png"))
    asked = replace(REQUEST, gradual_latent=GradualLatent(900), image=painted, mask=painted)
    with pytest.raises(UserError, match="what a mask keeps does not grow"):
        plain.pipeline.fit(asked)
    assert plain.pipeline.fit(replace(asked, sampler="ddim")).mask == painted  # where nothing grows


def test_settings_of_effects_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"deep shrink's ratio is 0"):
        DeepShrink(ratio=0)
    with pytest.raises(UserError, match=r"gradual latent's ratio is -1"):
        GradualLatent(ratio=-1)
    with pytest.raises(UserError, match="sharpening is 4; use an odd number"):
        UnsharpMask(4, 0.5, 0.5)


def test_what_regions_cannot_be_is_one_line(family: SdxlFamily, plain: Generator, tmp_path: Path) -> None:
    file = lora(tmp_path / "one.safetensors", family, seed=0)
    regions = Regions(str(mask(tmp_path / "mask.png")))
    with pytest.raises(UserError, match="'a cat' has 1 parts, and there are 2 adapters"):
        made(generator(family, file, file), replace(REQUEST, regions=regions))
    with pytest.raises(UserError, match="cannot be read as an image"):
        made(plain, replace(REQUEST, regions=Regions(str(file))))
    flow = FakeFamily()
    formats = formats_for(parts_of(flow), CPU, AskedDtype(torch.float32, "the dtype"))
    for asked in ({"regions": regions}, {"deep_shrink": DeepShrink()}, {"gradual_latent": GradualLatent()}):
        with pytest.raises(UserError, match=f"{next(iter(asked))} (is|are) for"):
            Generator(flow, device=CPU, formats=formats)("a cat", **asked)
