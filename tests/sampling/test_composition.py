"""Starts, stages, schedules, guidance and adapters in some steps, on a family that is checked by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.diffusion import guidance, spacings
from sfumato.diffusion.schedules import ddpm_sigmas
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.parts import Parts
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments, parse_adapter
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.plan import Effect, Plan
from sfumato.sampling.request import Request
from sfumato.sampling.settings.hires import Hires
from tests.sampling.fake import FakeFamily
from tests.sampling.test_loaded_adapters import lora

pytestmark = pytest.mark.whole_model

REQUEST = Request("a cat", width=64, height=64, steps=4, seed=3)


def pipeline(*effects: Effect, attachments: Attachments | None = None) -> Pipeline:
    family = FakeFamily()

    def encode(vae: object, pixels: Tensor, rng: object) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 8).mean(1, keepdim=True).repeat(1, 4, 1, 1)

    family.encode_image = encode  # type: ignore[method-assign, assignment]
    parts = Parts(family, torch.device("cpu"))
    return Pipeline(family, parts, dtype=torch.float32, effects=effects, on_load=attachments)


def timesteps(made: Pipeline) -> list[object]:
    return [call["timestep"] for call in made.parts[DENOISER].calls]  # type: ignore[union-attr, index]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.new("RGB", (64, 64), (200, 40, 90)).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(None, [750, 500, 250]), (0.5, [500, 250]), (1, [1000, 750, 500, 250]), (0, [])],
)
def test_strength_is_the_share_of_steps_that_change_an_image(
    strength: float | None, expected: list[float], photo: str
) -> None:
    made = pipeline()
    made(replace(REQUEST, image=photo, strength=strength))
    assert timesteps(made) == expected


def test_a_second_stage_goes_on_from_the_enlarged_first() -> None:
    made = pipeline()
    hires = Hires(scale=0.5, steps=2, upscaler="latent")
    small, large = made.stages([replace(REQUEST, hires=hires, strength=0.5)])
    assert (small.shape[-2:], large.shape[-2:]) == ((4, 4), (8, 8))
    assert timesteps(made) == [1000, 500, 500, 250]


def test_effects_change_the_plan_and_leave_when_it_is_carried_out_or_fails() -> None:
    seen: list[str] = []

    @contextmanager
    def silence(plan: Plan) -> Iterator[Plan]:
        seen.append("in")
        try:
            yield replace(plan, noise=replace(plan.noise, start=plan.noise.start * 0))
        finally:
            seen.append("out")

    assert pipeline(silence)(REQUEST).tobytes() == pipeline(silence)(replace(REQUEST, seed=9)).tobytes()

    def fail(step: int, latents: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline(silence)(REQUEST, on_step=fail)
    assert seen == ["in", "out"] * 3


@pytest.mark.parametrize("name", spacings.SPACINGS)
def test_schedules_fall_from_the_highest_level_to_the_lowest(name: str) -> None:
    table = ddpm_sigmas()
    levels = spacings.SPACINGS[name](table, 10)
    assert levels.shape == (10,)
    assert bool((levels.diff() < 0).all())
    assert float(levels[0]) == pytest.approx(float(table[-1]), rel=1e-5)


def test_schedules_are_the_published_ones() -> None:
    table = ddpm_sigmas()
    # Karras et al.'s formula by hand; places as scipy.stats.beta.ppf has them.
    rising = [float(table[end]) ** (1 / 7) for end in (-1, 0)]
    assert float(spacings.karras(table, 3)[1]) == pytest.approx((sum(rising) / 2) ** 7, rel=1e-5)
    found = [int(torch.argmin((table - level).abs())) for level in spacings.beta(table, 4)]
    assert [found[0], found[1], found[3]] == [999, 823, 176]
    assert found[2] in (499, 500)  # the middle of both
    assert torch.equal(spacings.simple(table, 4), table[[999, 749, 499, 249]])


def test_rescaled_guidance_has_the_deviation_of_its_prompt() -> None:
    rng = torch.Generator().manual_seed(0)
    guided, wanted = torch.randn(2, 4, 8, 8, generator=rng) * 5, torch.randn(2, 4, 8, 8, generator=rng)
    assert torch.equal(guidance.rescaled(guided, wanted, 0.0), guided)
    whole = guidance.rescaled(guided, wanted, 1.0)
    assert torch.allclose(whole.flatten(1).std(dim=1), wanted.flatten(1).std(dim=1))


def test_an_adapter_acts_in_its_steps_and_layers_alone(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors", "lora_unet_mix", "lora_unet_read")

    def drawn(**settings: object) -> np.ndarray:
        files = [AdapterFile(path, **settings)]  # type: ignore[arg-type]
        attached = Attachments(FakeFamily(), files, dtype=torch.float32)
        return np.asarray(pipeline(attached.spans, attachments=attached)(REQUEST)).astype(int)

    always, never = drawn(), drawn(strength=0.0)
    assert np.abs(always - never).max() > 2
    assert np.array_equal(drawn(span=(0.0, 0.0)), never)
    for change in ({"span": (0.5, 1.0)}, {"layer_weights": ((re.compile("mix"), 0.0),)}):
        some = drawn(**change)
        assert np.abs(some - never).max() > 2
        assert np.abs(some - always).max() > 2
    assert np.array_equal(drawn(layer_weights=((re.compile("unet"), 0.0),)), never)


def test_what_an_adapter_is_to_do_is_read_behind_its_file(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors")
    file = parse_adapter(f"{path};0.5;steps=0.2-0.8;layers=mix:2;layers=unet:0.25")
    assert (file.strength, file.span) == (0.5, (0.2, 0.8))
    assert [file.weight_of(name) for name in ("lora_unet_mix", "lora_unet_read", "lora_te1")] == [
        0.5,
        0.25,
        1,
    ]
    assert parse_adapter(f"{path};steps=0-0.5").strength == 1
    with pytest.raises(UserError, match=r"'steps=many' cannot be read; write steps=0.2-0.8"):
        parse_adapter(f"{path};steps=many")
    with pytest.raises(UserError, match=r"'steps=0.8-0.2' cannot be read"):
        parse_adapter(f"{path};steps=0.8-0.2")
    nowhere = parse_adapter(f"{lora(tmp_path / 'b.safetensors', 'lora_unet_mix')};layers=none:0.5")
    with pytest.raises(UserError, match=r"layers=none:0\.5 fits no layer; they are called lora_unet_mix"):
        Attachments(FakeFamily(), [nowhere], dtype=torch.float32).check()
