"""The pipeline on a family that can be checked by hand."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import nn

from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.parts import Parts
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request
from tests.sampling.fake import FakeFamily

pytestmark = pytest.mark.whole_model

CPU = torch.device("cpu")
REQUEST = Request("a cat", width=32, height=48, steps=4, seed=3)


def make(dtype: torch.dtype = torch.float32, **settings: object) -> Pipeline:
    family = FakeFamily()
    parts = Parts(family, CPU, dict.fromkeys([DENOISER, VAE, *family.text_outputs], dtype))
    return Pipeline(family, parts, dtype=dtype, **settings)  # type: ignore[arg-type]


def are_equal(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def test_the_same_request_makes_the_same_image_of_the_size_asked_for() -> None:
    one, other = make()(REQUEST), make()(REQUEST)
    assert one.size == (32, 48)
    assert one.mode == "RGB"
    assert are_equal(one, other)
    assert len(one.getcolors(10_000) or []) > 10


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a dog"},
        {"seed": 4},
        {"steps": 5},
        {"guidance": 9.0},
        {"width": 48},
        {"cfg_scale": 4.0},
        {"sampler": "heun"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_the_image(change: dict[str, object]) -> None:
    assert not are_equal(make()(REQUEST), make()(replace(REQUEST, **change)))


def test_a_perfect_velocity_leads_to_the_clean_latents() -> None:
    pipeline = make()
    target = torch.randn((1, 4, 6, 4), generator=torch.Generator().manual_seed(0))

    def perfect(model: nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, _: object) -> torch.Tensor:
        return (noisy - target) / (timesteps / 1000)[:, None, None, None]

    pipeline.family.predict = perfect  # type: ignore[method-assign]
    decoded = pipeline.family.decode_image(pipeline.parts[VAE], target)[0]
    expected = ((decoded + 1) * 127.5).round().to(torch.uint8).movedim(0, -1).numpy()
    made = np.asarray(pipeline(REQUEST))
    assert np.abs(made.astype(int) - expected.astype(int)).max() <= 1


def test_the_noise_comes_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = make()(REQUEST)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert are_equal(one, make()(REQUEST))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_negative_prompt_matters_only_with_a_cfg_scale() -> None:
    negative = replace(REQUEST, negative_prompt="a dog")
    assert are_equal(make()(REQUEST), make()(negative))
    assert not are_equal(make()(replace(REQUEST, cfg_scale=4.0)), make()(replace(negative, cfg_scale=4.0)))


def test_cfg_scale_zero_draws_the_negative_prompt() -> None:
    swapped = replace(REQUEST, prompt="a dog", negative_prompt="a cat", cfg_scale=0.0)
    difference = ImageChops.difference(make()(REQUEST), make()(swapped))
    assert max(high for _, high in difference.getextrema()) <= 1  # type: ignore[misc]


def test_the_denoiser_is_asked_for_both_prompts_at_once_and_only_with_guidance() -> None:
    for cfg_scale, batch in ((1.0, 1), (3.0, 2)):
        pipeline = make()
        pipeline(replace(REQUEST, cfg_scale=cfg_scale))
        calls = pipeline.parts[DENOISER].calls
        assert [call["batch"] for call in calls] == [batch] * 4
        assert [call["timestep"] for call in calls] == [1000, 750, 500, 250]


def test_sizes_are_rounded_down_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("sfumato").propagate = True
    assert make()(replace(REQUEST, width=47, height=5)).size == (32, 16)
    assert "47 x 5 is no multiple of 16: the image will be 32 x 16" in caplog.text


def test_encoded_prompts_are_used_as_given() -> None:
    source = make()
    texts = source.encode(["a cat", "a dog"])
    assert source.parts.loaded == ["first", "second"]
    user = make()
    assert are_equal(user(REQUEST, texts), make()(REQUEST))
    assert user.parts.loaded == [DENOISER, VAE]


def test_prompts_are_encoded_one_by_one_and_each_once() -> None:
    pipeline = make()
    pipeline.encode(["a", "b", "a"])
    assert pipeline.family.encoded == [("first", 1), ("first", 1), ("second", 1), ("second", 1)]  # type: ignore[attr-defined]


def test_offload_keeps_one_part_at_a_time_and_draws_the_same() -> None:
    pipeline = make(offload=True)
    held: list[list[str]] = []
    load = pipeline.family.load

    def watch(part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        held.append([p for p in (DENOISER, VAE, "first", "second") if p in pipeline.parts])
        return load(part, dtype, device)

    pipeline.family.load = watch  # type: ignore[method-assign]
    assert are_equal(pipeline(REQUEST), make()(REQUEST))
    assert held == [[], [], [], []]


def test_offload_for_reuse_loads_every_part_once() -> None:
    pipeline = make(offload=True, is_reused=True)
    pipeline(REQUEST)
    pipeline(replace(REQUEST, prompt="a dog"))
    assert sorted(pipeline.parts.loaded) == sorted([DENOISER, VAE, "first", "second"])


def test_parts_are_announced_after_each_loading() -> None:
    seen: list[str] = []
    pipeline = make(offload=True, on_load=lambda part, module: seen.append(part))
    pipeline(REQUEST)
    pipeline(REQUEST)
    assert seen == ["first", "second", DENOISER, VAE] * 2


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_sixteen_bit_computation_stays_close(stored: torch.dtype) -> None:
    family = FakeFamily()
    parts = Parts(family, CPU, dict.fromkeys([DENOISER, VAE, *family.text_outputs], stored))
    made = Pipeline(family, parts, dtype=torch.bfloat16)(REQUEST)
    assert parts[DENOISER].calls[0]["dtype"] == torch.bfloat16
    difference = np.asarray(made).astype(float) - np.asarray(make()(REQUEST)).astype(float)
    assert 0 < np.abs(difference).mean() < 4


def test_a_part_can_compute_in_its_own_type() -> None:
    exact = make()
    latents_differ = make(dtypes={VAE: torch.bfloat16})
    difference = ImageChops.difference(exact(REQUEST), latents_differ(REQUEST))
    assert 0 < max(high for _, high in difference.getextrema()) < 8  # type: ignore[misc]


def test_loaded_parts_can_be_trained_afterwards() -> None:
    pipeline = make()
    pipeline(REQUEST)
    layer = pipeline.parts[DENOISER].mix.requires_grad_(True)  # type: ignore[union-attr]
    layer(torch.ones(4)).sum().backward()  # type: ignore[operator]
    assert layer.weight.grad is not None  # type: ignore[union-attr]


def test_steps_are_reported() -> None:
    seen: list[int] = []
    make()(REQUEST, on_step=lambda i, _: seen.append(i))
    assert seen == [0, 1, 2, 3]


def test_an_image_of_no_numbers_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("sfumato").propagate = True
    pipeline = make()
    pipeline.parts[VAE].bias.data.fill_(float("nan"))  # type: ignore[union-attr]
    assert pipeline(REQUEST).getextrema() == ((0, 0), (0, 0), (0, 0))
    assert "compute in bf16 or fp32" in caplog.text


def test_an_unknown_sampler_is_named_before_anything_loads() -> None:
    pipeline = make()
    with pytest.raises(UserError, match=r"sampler is 'ddim'; use one of euler, heun"):
        pipeline(replace(REQUEST, sampler="ddim"))
    assert not pipeline.parts.loaded
