"""Samplers, guidance and starts give what gen_img gives, on a denoiser that is a formula."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.diffusion import noise, starts
from sfumato.diffusion.samplers import Denoise, Revise
from sfumato.sampling import sampler_names
from sfumato.sampling.guides import classifier_free as guides
from sfumato.sampling.request import Request
from sfumato.sampling.spaces import DiscreteSpace
from tests.golden.derived import arrays, cases, error, inputs

NUMBERS = arrays("k_gen_steps")
SCALE = 3.0
"""Of the recorded embeddings."""

CASES = {case["id"]: case for case in cases("k_gen_steps")}
OTHERWISE = {
    "i_pndm_6_0.6": "a defect of which the right numbers are not known",
    "i_lms_6_0.3": "the first steps extrapolate with the weights of slopes that there are not",
    "i_dpmsingle_6_0.6": "steps pair up as they would have done with all steps before them",
}
"""What diffusers does in these cases, and our samplers do not."""

SAMPLERS = [name for name in CASES if name.startswith("s_") and name not in OTHERWISE]
IMAGES = [name for name in CASES if name.startswith("i_") and name not in OTHERWISE]
MASKS = [name for name in CASES if name.startswith("m_")]


class Run:
    """One case: its space, levels, inputs and model."""

    def __init__(self, name: str) -> None:
        self.case = CASES[name]
        self.shape = tuple(self.case["shape"])
        method = sampler_names.EARLIER[self.case["sampler"]]
        self.space = DiscreteSpace(method, self.case.get("v_parameterization", False))
        self.sigmas = self.space.sigmas(Request("", steps=self.case["steps"]))
        self.calls: list[float] = []

    def input(self, what: str) -> Tensor:
        return inputs(f"kgs.{self.case['id']}.{what}", self.shape)

    def denoise(self, *texts: str) -> Denoise:
        """Return a model that is asked for rows of each text."""
        words = [SCALE * inputs(f"kgs.{self.case['id']}.{text}", (1, 77, 48)).mean() for text in texts]
        heard = torch.stack(words).reshape(-1, 1, 1, 1)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            timestep = self.space.timestep(sigma)
            self.calls.append(timestep)
            output = 0.7 * torch.tanh(self.space.shown(x, sigma)) + 0.1 * math.cos(timestep / 100) + heard
            return self.space.clean(output, x, sigma)

        return denoise

    def guided(self) -> Denoise:
        scale, negative = self.case["scale"], self.case.get("negative_scale")
        if negative is not None:
            guide = guides.away_from(torch.tensor(scale), torch.tensor(negative))
            return guide(self.denoise("pos", "neg", "unc"))
        if scale == 1:
            return self.denoise("pos")
        return guides.classifier_free(torch.tensor(scale))(self.denoise("pos", "neg"))

    def sample(self, x: Tensor, first: int = 0, revise: Revise | None = None) -> list[Tensor]:
        """Return latents after each step, as diffusers scales them."""
        after: list[Tensor] = []

        def note(x: Tensor, sigma: float) -> Tensor:
            x = revise(x, sigma) if revise else x
            after.append(x if self.space.method.starts_from_noise else self.space.shown(x, sigma))
            return x

        rng = torch.Generator()
        self.space.sampler(self.guided(), x, self.sigmas[first:], rng, revise=note)
        return after


@pytest.fixture(autouse=True)
def _noise_is_recorded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the noises of the case; of those for DPM2, that version of diffusers uses every second."""
    name = request.node.callspec.params.get("name", "g_off")
    places: Iterator[int] = count(1, 2) if "dpm_2_a" in name else count()
    run = Run(name)
    monkeypatch.setattr(noise, "draw", lambda shape, rng: run.input(f"noise{next(places)}"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_takes_the_recorded_steps(name: str) -> None:
    run = Run(name)
    start = run.space.start(run.input("start"), float(run.sigmas[0]))
    after = run.sample(start)
    assert error(after[-1], NUMBERS[f"{name}/final"]) < 1e-5
    timesteps = run.case["model_calls"][: len(run.calls)]
    assert run.calls == pytest.approx(timesteps, abs=0.01)
    if len(after) == len(run.case["timesteps"]):  # one call of diffusers is one step
        for step, latents in enumerate(after):
            assert error(latents, NUMBERS[f"{name}/after{step}"]) < 1e-5


@pytest.mark.parametrize("name", ["g_off", "g_neg"])
def test_guidance_leads_as_recorded(name: str) -> None:
    run = Run(name)
    start = run.space.start(run.input("start"), float(run.sigmas[0]))
    assert error(run.sample(start)[-1], NUMBERS[f"{name}/final"]) < 1e-5


def started(run: Run) -> tuple[Tensor, int]:
    """Return x made of a case's image, and the step to start with, as sd-scripts has them."""
    image, asked = 0.9 * run.input("init"), Request("", steps=run.case["steps"])
    return run.space.enter(image, run.input("i2i"), asked, run.case["strength"])


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_changed_as_recorded(name: str) -> None:
    run = Run(name)
    stem = f"{name}/right" if run.case.get("judge") == "right" else name
    x, first = started(run)
    assert error(run.sample(x, first)[-1], NUMBERS[f"{stem}/final"]) < 1e-5
    assert run.calls == pytest.approx(run.case.get("right_timesteps", run.case["model_calls"]), abs=0.01)


def mask(case: dict[str, Any]) -> Tensor:
    """Return the mask of a case for its latents, (H/8, W/8), 1 is painted anew."""
    width, height = case["mask_size"]
    image = Image.new("L", (width, height))
    for *box, value in case["mask_rects"]:
        image.paste(value, tuple(box))
    small = image.resize((width // 8, height // 8), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).float() / 255


@pytest.mark.parametrize("name", MASKS)
def test_what_a_mask_keeps_is_kept_as_recorded(name: str) -> None:
    run = Run(name)
    image, added = 0.9 * run.input("init"), run.input("i2i")
    keep = 1 - mask(run.case)
    revise = starts.keeping(lambda sigma: run.space.noised(image, added, sigma), keep)
    x, first = started(run)
    final = run.sample(x, first, revise=revise)[-1]
    assert error(final, NUMBERS[f"{name}/right/final"]) < 1e-5
    assert torch.equal(final[..., keep == 1], image[..., keep == 1])
