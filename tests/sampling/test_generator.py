"""Images from Python, one by one and several at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.diffusion.samplers import euler_ancestral
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.sampling.formats import AskedDtype, formats_for
from sfumato.sampling.generator import Generator, parts_of
from sfumato.sampling.guides.guide import guided
from sfumato.sampling.loaded_adapters import AdapterFile
from sfumato.sampling.request import Request, batches
from tests.sampling.fake import FakeFamily
from tests.sampling.test_loaded_adapters import lora

pytestmark = pytest.mark.whole_model

CPU = torch.device("cpu")


def generator(*adapters: AdapterFile) -> Generator:
    family = FakeFamily()
    formats = formats_for(parts_of(family), CPU, AskedDtype(torch.float32, "the dtype"))
    return Generator(family, adapters=adapters, device=CPU, formats=formats)


def distance(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def test_a_prompt_makes_images_of_seeds_that_follow_each_other() -> None:
    first, second = generator()("a cat", num_images=2, seed=3)
    assert first.size == (64, 64)
    assert distance(first, second) > 20
    assert distance(generator()("a cat", seed=4)[0], second) == 0


@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_a_batch_makes_what_its_images_are_alone(cfg_scale: float) -> None:
    made = generator()
    alone = made(["a cat", "a dog"], num_images=2, seed=3, cfg_scale=cfg_scale, negative_prompt="bad")
    made.pipeline.parts[DENOISER].calls.clear()  # type: ignore[union-attr]
    asked = [
        made.request(text, seed=seed, negative_prompt="bad") for text in ("a cat", "a dog") for seed in (3, 4)
    ]
    together = made.make([replace(each, cfg_scale=cfg_scale) for each in asked], batch_size=4)
    rows = {call["batch"] for call in made.pipeline.parts[DENOISER].calls}  # type: ignore[union-attr]
    assert rows == {4 if cfg_scale == 1 else 8}
    assert [distance(*pair) <= 1 for pair in zip(alone, together, strict=True)] == [True] * 4
    assert distance(alone[0], alone[2]) > 5


def test_each_image_of_a_batch_has_its_own_guidance() -> None:
    made = generator()
    asked = [made.request("a cat", seed=1, guidance=g, cfg_scale=c) for g, c in ((1.0, 2.0), (9.0, 5.0))]
    alone = [made.pipeline(each) for each in asked]
    assert [distance(*pair) <= 1 for pair in zip(alone, made.make(asked, 2), strict=True)] == [True, True]
    assert distance(*alone) > 5


def test_noise_on_the_way_is_each_images_own() -> None:
    def none(x: Tensor, sigma: float) -> Tensor:
        return torch.zeros_like(x)

    def rngs() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    levels, start = torch.tensor([2.0, 1.0, 0.5]), torch.zeros(2, 3, 4, 4)
    together = euler_ancestral(none, start, levels, rngs())
    alone = [euler_ancestral(none, start[:1], levels, rng) for rng in rngs()]
    assert torch.equal(together, torch.cat(alone))


def test_what_differs_in_size_is_made_in_turn_and_comes_back_in_order() -> None:
    sizes = [32, 64, 32, 48, 32]
    requests = [Request("a cat", width=width, height=32, steps=1) for width in sizes]
    assert batches(requests, 2) == [[0, 2], [4], [1], [3]]
    assert [image.width for image in generator().make(requests, 2)] == sizes
    with pytest.raises(ValueError, match="a batch is of one size"):
        generator().pipeline.batch(requests)


def test_adapters_act_at_their_strengths(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors")
    bare, adapted = generator()("a cat", seed=1), generator(AdapterFile(path, 0.5))("a cat", seed=1)
    assert distance(bare[0], adapted[0]) > 5
    off = generator(AdapterFile(path, 0.5))
    off.adapters.set_strengths([0.0])
    assert distance(bare[0], off("a cat", seed=1)[0]) == 0


def test_a_wrong_setting_is_told() -> None:
    with pytest.raises(UserError, match="sampler is 'ddim'"):
        generator()("a cat", sampler="ddim")
    with pytest.raises(TypeError, match="wdth"):
        generator()("a cat", wdth=32)


def test_guides_lie_around_each_other() -> None:
    def times(factor: float):
        return lambda denoise: lambda x, sigma: factor * denoise(x, sigma) + sigma

    denoise = guided(lambda x, sigma: x, [times(2), times(10)])
    assert float(denoise(torch.tensor(1.0), 3.0)) == 10 * (2 * 1 + 3) + 3
