"""Whole runs of gen_img on tiny models make the latents and images that sd-scripts makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.cli.main import script
from sfumato.diffusion import noise, starts
from sfumato.diffusion.samplers import Revise
from sfumato.models.components import autoencoder
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.sampling.request import Request
from sfumato.sampling.sampler_names import EARLIER
from sfumato.sampling.spaces import DiscreteSpace
from sfumato.sampling.starts import canvas
from tests.golden import image_models
from tests.golden.derived import arrays, assert_recorded, cases, recorded_parts
from tests.golden.image_models import FIXTURE, picture

NUMBERS = arrays(FIXTURE)
WAITING = {
    "x04": "ControlNet-LLLite",
    "x05": "ControlNet",
}
"""Cases of what is not built."""

CASES = [case for case in cases(FIXTURE) if case["id"] not in WAITING]
QUICK = {"e01", "e04", "e13", "x02"}
"""Run always; the others are slow together."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    found = image_models.write_models(folder)
    sd, sdxl = SdFamily(found["sd"]), SdxlFamily(found["sdxl"])
    for name, family, key in (("l0", sd, "lora0:"), ("l1", sd, "lora1:"), ("xl", sdxl, "loraxl:")):
        image_models.write_lora(folder / f"{name}.safetensors", family, key)
    image_models.write_words(folder)
    picture("i.png", (128, 192)).save(folder / "i.png")
    picture("j.png", (128, 128)).save(folder / "j.png")
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).rectangle((16, 16, 79, 95), fill=255)
    mask.save(folder / "m.png")
    regions = Image.new("RGB", (128, 128), "red")
    regions.paste("lime", (64, 0, 128, 128))
    regions.save(folder / "r.png")
    return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the latents that the autoencoder is given."""
    found: list[Tensor] = []
    decode = autoencoder.decode

    def record(vae: Any, latents: Tensor) -> Tensor:
        found.append(latents.clone())
        return decode(vae, latents)

    monkeypatch.setattr(autoencoder, "decode", record)
    return found


def sample_posterior(monkeypatch: pytest.MonkeyPatch, seed: int, num_steps: int) -> None:
    """Sample what an image is encoded to, where sd-scripts does and the mean is taken here.

    It is the next draw behind the noises of an image with that seed.
    """

    def encode(vae: Any, pixels: Tensor, rng: Any) -> Tensor:
        mean, log_variance = vae.encode(pixels).latent_dist.mean, vae.encode(pixels).latent_dist.logvar
        rng = torch.Generator().manual_seed(seed)
        draws = [torch.randn(mean.shape, generator=rng) for _ in range(num_steps + 3)]
        return mean + torch.exp(0.5 * log_variance) * draws[-1]

    monkeypatch.setattr(autoencoder, "encode", encode)


def grow_on_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw noise for latents that are not of full size behind all that an image's seed is good for.

    sd-scripts takes it from wherever the global generator stands; here it is the next of the image's own.
    """
    later = torch.Generator().manual_seed(16)
    full = (1, 4, 32, 32)
    noises = [torch.randn(full, generator=later) for _ in range(9)]
    drawn = count()

    def draw(shape: Sequence[int], rng: torch.Generator) -> Tensor:
        step = next(drawn) - 10
        if step < 0:
            return noises[0]
        return noises[step + 1] if tuple(shape) == full else torch.randn(tuple(shape), generator=later)

    monkeypatch.setattr(noise, "draw", draw)


def put_back_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put what a mask keeps back at the level that a step came from, where the level it led to is right.

    So sd-scripts leaves noise in it. Its masks have 8 bits when they are as small as latents, too.
    """
    levels = DiscreteSpace(EARLIER["euler"], is_velocity=False).sigmas(Request("", steps=5)).tolist()
    keeping, kept = starts.keeping, canvas.kept

    def late(noised: Callable[[float], Tensor], keep: Tensor) -> Revise:
        return keeping(lambda sigma: noised(levels[levels.index(sigma) - 1]), keep)

    monkeypatch.setattr(starts, "keeping", late)
    monkeypatch.setattr(canvas, "kept", lambda *given: (kept(*given) * 255).round() / 255)


AS_RECORDED = {"e07": put_back_late, "e17": grow_on_other_noise}
"""What sd-scripts does wrong in cases whose other numbers are right: it is done so, the rest compared."""


FROM_IMAGES = {"e06": (8, 8), "e07": (9, 5), "e09": (11, 5)}
"""Cases that encode an image: the seed and the steps that its random numbers follow from."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case["id"], marks=[] if case["id"] in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_images_are_made_as_recorded(
    case: dict[str, Any],
    models: dict[str, Path],
    tmp_path: Path,
    decoded: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if case["id"] in FROM_IMAGES:
        sample_posterior(monkeypatch, *FROM_IMAGES[case["id"]])
    AS_RECORDED.get(case["id"], lambda _: None)(monkeypatch)
    model = models[case["model"]]
    lines, args = tmp_path / "lines.txt", [text.replace("<dir>", str(model.parent)) for text in case["args"]]
    lines.write_text("\n".join(case["lines"]) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    options = ["--from_file", str(lines), "--outdir", str(out), "--sequential_file_name", "--sdpa"]
    assert script("gen_img", ["--ckpt", str(model), *options, *args]) == 0
    rows = torch.cat(decoded[-sum(shape[0] for shape in case["decodes"]) :]) if case["id"] != "e09" else None
    for number, shape in enumerate(case["decodes"]):
        latents = decoded[number] if rows is None else rows[: shape[0]]
        rows = rows if rows is None else rows[shape[0] :]
        assert_recorded(latents, NUMBERS, f"{case['id']}/latents{number}", 2e-4)
    assert sorted(file.name for file in out.iterdir()) == case["files"]
    for number, name in enumerate(case["files"]):
        pixels = torch.from_numpy(np.asarray(Image.open(out / name)).astype(np.float32))
        for ours, recorded in recorded_parts(pixels, NUMBERS, f"{case['id']}/picture{number}"):
            assert float((ours - recorded.float()).abs().max()) <= 2


def test_every_recorded_run_is_looked_at() -> None:
    print(f"{len(CASES)} runs, {len(WAITING)} wait")
    assert len(CASES) + len(WAITING) == len(cases(FIXTURE))
