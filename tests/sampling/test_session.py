"""A run of generation, on a family that can be checked by hand."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.cli import generate
from sfumato.config.run.composition import CompositionConfig
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.sampling import session
from sfumato.sampling.output.image_files import read_request
from sfumato.sampling.prompts.prompt_options import PromptOptions, parse_line
from sfumato.sampling.session import SamplingSession
from sfumato.sampling.settings.regions import Regions
from tests.sampling.fake import FakeFamily
from tests.sampling.test_loaded_adapters import lora

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FakeOptions:
    first_dtype: str | None = None
    fake_dtype: str | None = None
    ae_dtype: str | None = None


PART_DTYPES = {"first": "first_dtype", DENOISER: "fake_dtype", VAE: "ae_dtype"}


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> FakeFamily:
    monkeypatch.setattr(logging.getLogger("sfumato"), "propagate", True)
    family = FakeFamily()
    monkeypatch.setattr(session, "family_for", lambda run: family)
    monkeypatch.setattr(session, "default_device", lambda: CPU)
    return family


def run(folder: Path, options: FakeOptions | None = None, **settings: object) -> Run:
    base = {"output_dir": str(folder), "width": 32, "height": 32, "seed": 5, "dtype": "fp32"}
    generation = GenerationConfig(**{**base, **settings})  # type: ignore[arg-type]
    return Run("generate", "fake", [generation, options or FakeOptions()])


def images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_one_image_is_made_with_the_familys_defaults(tmp_path: Path) -> None:
    generate.main(run(tmp_path / "new", prompt="a dog"))
    (path,) = images(tmp_path / "new")
    request = read_request(path)
    assert (request.prompt, request.steps, request.seed, request.guidance) == ("a dog", 3, 5, 3.5)


def test_a_seed_that_nobody_gave_is_recorded_and_makes_the_image_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sfumato")
    generate.main(run(tmp_path / "a", seed=None))
    generate.main(run(tmp_path / "b", seed=None))
    (one,), (other,) = images(tmp_path / "a"), images(tmp_path / "b")
    seed = read_request(one).seed
    assert seed != read_request(other).seed
    assert f"seed {seed}, 32 x 32, 3 steps" in caplog.text
    generate.main(run(tmp_path / "c", seed=seed))
    assert pixels(images(tmp_path / "c")[0]) == pixels(one)


def test_a_prompt_line_is_completed_by_the_command_line(tmp_path: Path) -> None:
    sitting = SamplingSession(run(tmp_path, negative_prompt="bad", cfg_scale=2.0, steps=7))
    request = sitting.request(parse_line("a cat --w 50 --l 6 --d 1"))
    assert (request.width, request.height, request.steps, request.seed) == (48, 32, 7, 1)
    assert (request.guidance, request.cfg_scale, request.negative_prompt) == (6.0, 2.0, "bad")


def test_regions_are_asked_for_and_are_for_unets(tmp_path: Path) -> None:
    regions = str(tmp_path / "mask.png")
    asked = run(tmp_path, prompt="a cat AND a dog").with_sections(CompositionConfig(regions=regions))
    with pytest.raises(UserError, match=r"mask\.png cannot be read"):
        SamplingSession(asked).request(parse_line("a cat AND a dog"))
    Image.new("RGB", (8, 8)).save(regions)
    request = SamplingSession(asked).request(parse_line("a cat AND a dog"))
    assert request.regions == Regions(regions)
    assert list(request.sub_prompts) == ["a cat", "a dog"]
    with pytest.raises(UserError, match="models that are UNets"):
        generate.main(asked)


def test_a_line_cannot_name_a_mask_for_an_image_in_two_stages(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    asked = run(tmp_path).with_sections(CompositionConfig(hires_scale=0.5))
    line = PromptOptions("cat", image=str(tmp_path / "a.png"), mask=str(tmp_path / "a.png"))
    with pytest.raises(UserError, match="the second stage would repaint all"):
        SamplingSession(asked).request(line)


def test_adapters_are_recorded_with_the_strength_they_had(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors")
    sitting = SamplingSession(run(tmp_path, lora_weights=(f"{path};0.5",)))
    for strengths, expected in ((None, "a.safetensors;0.5"), ((2.0,), "a.safetensors;2")):
        (made,) = sitting.make([PromptOptions("a cat", multipliers=strengths)])
        with Image.open(made) as image:
            assert expected in image.info["sfumato"]
            assert "Model: denoiser.safetensors" in image.info["parameters"]


def test_a_conversation_makes_an_image_for_each_line_and_survives_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, family: FakeFamily
) -> None:
    lines = "a cat --w 48\na dog --w wide\na dog --ss unknown\na dog --d 9\n\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    generate.main(run(tmp_path, interactive=True))
    made = [read_request(path) for path in images(tmp_path)]
    assert sorted((r.prompt, r.width, r.seed) for r in made) == [("a cat", 48, 5), ("a dog", 32, 9)]
    assert "--w is 'wide'" in caplog.text
    assert "sampler is 'unknown'" in caplog.text


def test_a_conversation_ends_with_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a cat"))
    generate.main(run(tmp_path, interactive=True))
    assert len(images(tmp_path)) == 1


def test_number_formats_follow_their_options(tmp_path: Path) -> None:
    asked = run(tmp_path, FakeOptions(first_dtype="fp32", fake_dtype="fp8"), dtype="bf16")
    formats = session.formats_of(asked, PART_DTYPES, FakeFamily(), CPU)
    bf16, fp8 = torch.bfloat16, torch.float8_e4m3fn
    assert formats.stored == {"first": torch.float32, "second": bf16, DENOISER: fp8, VAE: bf16}
    assert formats.computed == {"first": torch.float32, "second": bf16, DENOISER: bf16, VAE: bf16}


def test_eight_bits_for_everything_spare_the_autoencoder(tmp_path: Path) -> None:
    formats = session.formats_of(run(tmp_path, dtype="fp8"), {}, FakeFamily(), CPU)
    fp8 = torch.float8_e4m3fn
    assert formats.stored == {"first": fp8, "second": fp8, DENOISER: fp8, VAE: torch.bfloat16}
    assert set(formats.computed.values()) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("settings", "options", "complaint"),
    [
        ({"dtype": "bf8"}, None, "--dtype is 'bf8'"),
        ({}, FakeOptions(ae_dtype="bf8"), "--ae_dtype is 'bf8'"),
        ({"dtype": "fp16"}, None, "--dtype is fp16, which a CPU"),
        ({"lora_weights": ("none.safetensors",)}, None, "there is no file none.safetensors"),
        (
            {"output_dir": "file/new"},
            None,
            "file/new cannot be written: Not a directory; choose another --output_dir",
        ),
    ],
)
def test_what_will_not_do_is_said_before_anything_loads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    options: FakeOptions | None,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way", encoding="utf-8")
    monkeypatch.setattr(FakeFamily, "load", lambda *_: pytest.fail("loaded a model"))
    with pytest.raises(UserError, match=complaint):
        SamplingSession(run(tmp_path, options, **settings), part_dtypes=PART_DTYPES)
