"""Whole runs of image making with Stable Diffusion 1 and XL on tiny models in the published formats."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli.main import main
from tests import tiny

COMMON = shlex.split("--width 64 --height 64 --steps 3 --seed 5 --dtype fp32 --prompt 'a red cat'")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    make = tiny.sdxl if request.param == "sdxl" else tiny.sd
    return request.param, make(tmp_path_factory.mktemp("model")).arguments


def draw(family: tuple[str, list[str]], folder: Path, *options: str) -> np.ndarray:
    name, model = family
    assert main(["generate", name, *model, *COMMON, "--output_dir", str(folder), *options]) == 0
    with Image.open(next(folder.glob("*.png"))) as image:
        return np.asarray(image).astype(int)


def test_images_depend_on_seed_sampler_and_guidance_and_on_nothing_else(
    family: tuple[str, list[str]], tmp_path: Path
) -> None:
    first = draw(family, tmp_path / "first")
    assert first.shape == (64, 64, 3)
    assert first.std() > 1
    assert np.array_equal(first, draw(family, tmp_path / "again"))
    for number, options in enumerate(
        ("--seed 6", "--sampler euler_a", "--cfg_scale 1", "--negative_prompt dog")
    ):
        other = draw(family, tmp_path / str(number), *shlex.split(options))
        assert np.abs(first - other).mean() > 0.05, options


def test_emphasis_in_a_prompt_is_heard(family: tuple[str, list[str]], tmp_path: Path) -> None:
    plain = draw(family, tmp_path / "plain")
    loud = draw(family, tmp_path / "loud", "--prompt", "a (red:1.9) cat")
    assert not np.array_equal(plain, loud)


def test_an_unknown_sampler_is_one_line(
    family: tuple[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, model = family
    assert main(["generate", name, *model, *COMMON, "--output_dir", str(tmp_path), "--sampler", "elur"]) == 2
    assert "use one of ddim" in capsys.readouterr().err
