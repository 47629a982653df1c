"""Command lines of the scripts that make images, as people write them, on tiny models."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sfumato.cli.main import script
from sfumato.cli.options.parse import parse
from sfumato.cli.scripts import script_named
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.interface.family import DENOISER
from tests import tiny

PAGE = Path(__file__).parents[2] / "docs" / "gen_img.md"
USUAL = "--steps 1 --W 64 --H 64 --seed 5 --sequential_file_name"

LINES = (Path(__file__).parent / "image_command_lines.txt").read_text("utf-8").splitlines()
ROWS = [line.split(" :: ") for line in LINES if line and not line.startswith("#")]
MADE = [(kind, *row) for kind, *row in ROWS if kind != "mistake"]
MISTAKES = [row for kind, *row in ROWS if kind == "mistake"]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what stands in the command lines for files."""
    folder = tmp_path_factory.mktemp("files")
    sd, sdxl = tiny.sd(folder / "models"), tiny.sdxl(folder / "large")
    Image.new("RGB", (64, 64), "teal").save(folder / "image.png")
    Image.new("L", (64, 64), 255).save(folder / "mask.png")
    Image.new("RGB", (64, 64), "red").save(folder / "regions.png")
    (folder / "lines.txt").write_text("a cat\n# none\na dog --n bad\na house --s 2\n", "utf-8")
    (folder / "lines.py").write_text(MODULE, "utf-8")
    _write_lora(folder / "lora.safetensors", SdFamily(sd.path))
    save_file({"emb_params": torch.full((2, 64), 0.1)}, folder / "zxqk.safetensors")
    save_file({layer: torch.full((1, 64), 0.1) for layer in SdFamily.text_layers}, folder / "qwz.safetensors")
    lora = f"--network_module networks.lora --network_weights {folder / 'lora.safetensors'}"
    files = {name: folder / f"{name}.png" for name in ("image", "mask", "regions")}
    files |= {"sd": sd.path, "sdxl": sdxl.path, "folder": folder / "models", "tokenizers": sd.tokenizers}
    files |= {"word": folder / "zxqk.safetensors", "layered": folder / "qwz.safetensors"}
    files |= {"lora_file": folder / "lora.safetensors"}
    files |= {"lines": folder / "lines.txt", "module": folder / "lines.py"}
    return {"lora": lora, **{name: str(path) for name, path in files.items()}}


MODULE = """
def get_prompter(args, pipe, networks):
    return lambda args, pipe, rng, seed, index, image: None if index == 3 else f'cat {index}'
"""


def _write_lora(path: Path, family: SdFamily) -> None:
    model = family.load(DENOISER, torch.float32, torch.device("meta"))
    target = next(each for each in family.adapter_targets(DENOISER, model) if "to_q" in each.name)
    width = target.module.get_parameter("weight").shape[0]
    rng = torch.Generator().manual_seed(1)
    shapes = {"lora_down": (2, width), "lora_up": (width, 2)}
    save_file(
        {f"lora_{target.name}.{way}.weight": torch.randn(s, generator=rng) for way, s in shapes.items()}, path
    )


@pytest.mark.parametrize(
    ("name", "number", "options"),
    [
        pytest.param(*row, id=str(place), marks=pytest.mark.slow if kind == "slow" else [])
        for place, (kind, *row) in enumerate(MADE)
    ],
)
def test_a_command_line_makes_its_images(
    name: str, number: str, options: str, names: dict[str, str], tmp_path: Path
) -> None:
    usual = USUAL if "--use_original_file_name" not in options else USUAL.rpartition(" ")[0]
    words = shlex.split(f"{usual} {options.format(**names)}")
    assert script(name, [*words, "--outdir", str(tmp_path / "out")]) == 0
    found = sorted((tmp_path / "out").iterdir())
    assert len(found) == int(number)
    with Image.open(found[-1]) as image:
        assert min(image.size) >= 64
        assert np.asarray(image).std() > 1
        assert ("raw-prompt" in image.info) == ("webp" not in found[-1].name)


@pytest.mark.parametrize(("name", "message", "options"), MISTAKES)
def test_a_mistake_is_one_line(
    name: str,
    message: str,
    options: str,
    names: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(f"{options.format(**names)}")
    assert script(name, words if "gen_img" not in name else [*words, *shlex.split(USUAL)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line


def test_typed_lines_are_answered_and_ctrl_c_ends_one_of_them(
    names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sfumato.sampling.sd_scripts.image_maker import ImageMaker

    lines, make = iter(["stop", "", "a cat", "a dog --f x.none"]), ImageMaker.make

    def stoppable(self: ImageMaker, batch: list) -> object:
        if batch[0].request.prompt == "stop":
            raise KeyboardInterrupt
        return make(self, batch)

    def typed(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(ImageMaker, "make", stoppable)
    words = shlex.split(
        f"{USUAL} --ckpt {names['sd']} --interactive --no_preview --outdir {tmp_path / 'out'}"
    )
    assert script("gen_img", words) == 0
    assert len(list((tmp_path / "out").iterdir())) == 1
    said = "".join(capsys.readouterr())
    assert "stopped; type the next prompt" in said
    assert "whose suffix is of no image" in said


def test_what_is_left_out_is_said(
    names: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        Image.new("RGB", (64, 64), "teal").save(tmp_path / f"{name}.png")
    line = "'cat --c words --am 0.2,0.4 --dsd1 99'"
    options = "--ckpt {sd} --image_path {own} {lora} --network_mul 1 0.5 --vae_slices 16 --prompt {line}"
    words = shlex.split(f"{USUAL} {options.format(**names, own=tmp_path, line=line)}")
    assert script("gen_img", [*words, "--outdir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "--c has no effect" in said
    assert "--am is of no network from 0.4 on" in said
    assert "deep shrink at depth 99 has no effect" in said
    assert "--network_mul has no effect from number 2 on" in said
    assert "--vae_slices decodes tiles; its number has no effect" in said
    assert "b.png and those behind it were not used" in said


def test_commands_of_the_page_are_understood() -> None:
    found = re.findall(r"^    python sd-scripts/(\S+)\.py (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(found) >= 4
    for name, options in found:
        assert parse(script_named(name), shlex.split(options), prog=name).run.script == name


def test_the_table_is_long() -> None:
    print(f"{len(MADE)} command lines make images, {len(MISTAKES)} are mistakes")
    assert len(ROWS) >= 60
